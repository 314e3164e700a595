"""A video from an image, or from a first and a last one, each a file or an http(s) URL.

python examples/image_to_video.py Wan-AI/Wan2.1-I2V-14B-480P-Diffusers "a cat that stretches" cat.jpg
python examples/image_to_video.py Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers "a door opens" closed.png open.png
python examples/image_to_video.py alibaba-pai/Wan2.1-Fun-V1.1-1.3B-InP "a door opens" closed.png open.png
"""

import sys

from fastvideo import VideoGenerator
from fastvideo.configs.sample import SamplingParam


def main(model_id: str, prompt: str, image: str, last_image: str | None = None) -> None:
    """Make one video in the folder `video_samples`; its size follows the image."""
    sampling = SamplingParam.from_pretrained(model_id)
    with VideoGenerator.from_pretrained(model_id) as generator:
        video = generator.generate_video(
            prompt, sampling, image=image, last_image=last_image, output_path="video_samples"
        )
    height, width, frames = video.size
    print(f"{video.video_path}: {frames} frames of {width}x{height}")


if __name__ == "__main__":
    main(*sys.argv[1:])
