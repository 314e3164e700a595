"""A video from a prompt, and another from the same prompt and an image, with one Wan 2.2 model.

python examples/text_and_image_to_video.py Wan-AI/Wan2.2-TI2V-5B-Diffusers "a kite over the sea" kite.jpg
"""

import sys

from fastvideo import VideoGenerator
from fastvideo.configs.sample import SamplingParam


def main(model_id: str, prompt: str, image: str) -> None:
    """Make both videos in the folder `video_samples`."""
    sampling = SamplingParam.from_pretrained(model_id)
    with VideoGenerator.from_pretrained(model_id) as generator:
        for shown in (None, image):
            video = generator.generate_video(prompt, sampling, image=shown, output_path="video_samples")
            print(f"{video.video_path}: {video.size}")


if __name__ == "__main__":
    main(*sys.argv[1:])
