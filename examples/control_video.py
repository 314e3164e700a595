"""A video steered by a control video, such as of poses or depths, and by images of what it shows; with a mask, an edit.

python examples/control_video.py Wan-AI/Wan2.1-VACE-1.3B-diffusers "a fox in the snow" poses.mp4 fox.png
python examples/control_video.py Wan-AI/Wan2.1-VACE-1.3B-diffusers "a red door" house.mp4 "" mask.png
"""

import sys

from fastvideo import VideoGenerator
from fastvideo.configs.sample import SamplingParam


def main(model_id: str, prompt: str, video: str, reference: str = "", mask: str = "") -> None:
    """Make one video in the folder `video_samples`. Where the mask is black, the given video stays as it is."""
    sampling = SamplingParam.from_pretrained(model_id)
    sampling.conditioning_scale = 1.0  # or a list, a number for each control layer
    with VideoGenerator.from_pretrained(model_id) as generator:
        made = generator.generate_video(
            prompt, sampling, video=video, mask=mask or None, reference_images=[reference] if reference else None,
            output_path="video_samples",
        )  # fmt: skip
    print(f"{made.video_path}: {made.size}")


if __name__ == "__main__":
    main(*sys.argv[1:])
