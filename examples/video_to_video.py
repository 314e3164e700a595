"""A video made anew from another one, as a prompt says.

python examples/video_to_video.py Wan-AI/Wan2.1-T2V-1.3B-Diffusers walk.mp4 "a robot walks through a street" 0.7
python examples/video_to_video.py decart-ai/Lucy-Edit-Dev walk.mp4 "change the shirt to a kimono"
"""

import sys

from fastvideo import VideoGenerator
from fastvideo.configs.sample import SamplingParam


def main(model_id: str, video: str, prompt: str, strength: str | None = None) -> None:
    """Make one video in the folder `video_samples`, from the first frames of `video`.

    `strength` is how much of it becomes noise first, for text-to-video models: at 1 nothing of it is left.
    """
    sampling = SamplingParam.from_pretrained(model_id)
    sampling.strength = None if strength is None else float(strength)
    with VideoGenerator.from_pretrained(model_id) as generator:
        made = generator.generate_video(prompt, sampling, video=video, output_path="video_samples")
    print(f"{made.video_path}: {made.size}")


if __name__ == "__main__":
    main(*sys.argv[1:])
