"""A video after a control video (poses, depths or edges), in the look of a reference image.

python examples/fun_control.py alibaba-pai/Wan2.1-Fun-V1.1-1.3B-Control "a woman dances" poses.mp4 woman.jpg
python examples/fun_control.py alibaba-pai/Wan2.1-Fun-V1.1-1.3B-Control "a woman dances" poses.mp4
"""

import sys

from fastvideo import VideoGenerator
from fastvideo.configs.sample import SamplingParam


def main(model_id: str, prompt: str, video: str, reference: str = "") -> None:
    """Make one video in the folder `video_samples`; its size follows the control video."""
    sampling = SamplingParam.from_pretrained(model_id)
    with VideoGenerator.from_pretrained(model_id) as generator:
        made = generator.generate_video(
            prompt, sampling, video=video, reference_images=[reference] if reference else None,
            output_path="video_samples",
        )  # fmt: skip
    print(f"{made.video_path}: {made.size}")


if __name__ == "__main__":
    main(*sys.argv[1:])
