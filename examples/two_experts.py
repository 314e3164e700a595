"""A video of a Wan 2.2 model with two transformers, each with a guidance scale of its own; maybe from an image.

python examples/two_experts.py Wan-AI/Wan2.2-T2V-A14B-Diffusers "a kite over the sea"
python examples/two_experts.py Wan-AI/Wan2.2-I2V-A14B-Diffusers "a kite over the sea" kite.jpg
"""

import sys

from fastvideo import VideoGenerator
from fastvideo.configs.sample import SamplingParam


def main(model_id: str, prompt: str, image: str | None = None) -> None:
    """Make one video in the folder `video_samples`."""
    sampling = SamplingParam.from_pretrained(model_id)
    sampling.guidance_scale = 4.0  # of the steps with much noise, which decide what is where
    sampling.guidance_scale_2 = 3.0  # of the others, which draw the details
    with VideoGenerator.from_pretrained(model_id) as generator:
        video = generator.generate_video(prompt, sampling, image=image, output_path="video_samples")
    print(f"{video.video_path}: {video.size}")


if __name__ == "__main__":
    main(*sys.argv[1:])
