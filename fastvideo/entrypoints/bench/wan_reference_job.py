"""The whole job as a user of the reference writes it, a script of its own: no module of this package is imported."""

import argparse
from pathlib import Path

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("output", help="an MP4, or a .npy file with the frames")
    parser.add_argument("--device", default="cpu")
    for name in ("height", "width", "frames", "steps", "fps", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--guidance", type=float, required=True)
    options = parser.parse_args()

    import numpy as np
    import torch
    from diffusers import WanPipeline
    from diffusers.utils import encode_video

    pipeline = WanPipeline.from_pretrained(options.model, torch_dtype=torch.float32).to(options.device)
    frames = pipeline(
        prompt=options.prompt,
        height=options.height,
        width=options.width,
        num_frames=options.frames,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        generator=torch.Generator("cpu").manual_seed(options.seed),
        output_type="np",
    ).frames[0]
    if Path(options.output).suffix == ".npy":
        np.save(options.output, (frames * 255).round().astype("uint8"))
    else:
        encode_video(frames, fps=options.fps, output_path=options.output)
