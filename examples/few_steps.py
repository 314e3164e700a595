"""A video in three steps, of a model that was distilled to them.

python examples/few_steps.py FastVideo/FastWan2.1-T2V-1.3B-Diffusers "A vibrant city street at sunset."
"""

import sys

from fastvideo import VideoGenerator


def main(model_id: str, prompt: str, size: str = "832x448") -> None:
    """Make one video in the folder `video_samples`. Steps and guidance are the model's own."""
    width, height = map(int, size.split("x"))
    with VideoGenerator.from_pretrained(model_id) as generator:
        video = generator.generate_video(prompt, width=width, height=height, num_frames=61, output_path="video_samples")
    print(f"{video.video_path}: {video.stage_times['denoising']:.1f} s of denoising")


if __name__ == "__main__":
    main(*sys.argv[1:])
