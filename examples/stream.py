"""The frames of a video while it is made, of a model that makes it chunk by chunk; the video may be long, and of some
models begin with an image.

python examples/stream.py FastVideo/SFWan2.1-T2V-1.3B-Diffusers "A vibrant city street at sunset." 405
python examples/stream.py my-causal-folder "A kite over the sea" 85 832x480 kite.jpg
"""

import sys
import time
from pathlib import Path

from PIL import Image

from fastvideo import VideoGenerator


def main(model_id: str, prompt: str, num_frames: str = "81", size: str = "832x480", image: str = "") -> None:
    """Write each frame to the folder `frames` as soon as it is there."""
    width, height = map(int, size.split("x"))
    folder = Path("frames")
    folder.mkdir(exist_ok=True)
    request = {"num_frames": int(num_frames), "width": width, "height": height, "image": image or None}
    with VideoGenerator.from_pretrained(model_id) as generator:
        started = time.perf_counter()
        for chunk in generator.stream(prompt, **request):
            for number, frame in enumerate(chunk.frames, start=chunk.start):
                Image.fromarray(frame).save(folder / f"{number:05d}.png")
            print(f"{chunk.start + len(chunk.frames)} frames after {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
