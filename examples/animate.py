r"""Somebody in an image moves as somebody else does; or takes that one's place in a video.

Poses and face are videos that the preprocessing of the model's authors makes of one of a person.

python examples/animate.py Wan-AI/Wan2.2-Animate-14B-Diffusers "a dancer" dancer.png poses.mp4 face.mp4 153
python examples/animate.py Wan-AI/Wan2.2-Animate-14B-Diffusers "a dancer" dancer.png poses.mp4 face.mp4 77 \
    street.mp4 mask.mp4
"""

import sys

from fastvideo import VideoGenerator
from fastvideo.configs.sample import SamplingParam


def main(
    model_id: str, prompt: str, image: str, poses: str, face: str, frames: str, background: str = "", mask: str = ""
) -> None:
    """Make one video in the folder `video_samples`, in segments if it has more frames than the model makes at once."""
    sampling = SamplingParam.from_pretrained(model_id)
    sampling.num_frames = int(frames)
    if background:
        sampling.mode = "replace"  # what is black in the mask stays
    with VideoGenerator.from_pretrained(model_id) as generator:
        made = generator.generate_video(
            prompt, sampling, image=image, pose_video=poses, face_video=face, background_video=background or None,
            mask_video=mask or None, output_path="video_samples",
        )  # fmt: skip
    print(f"{made.video_path}: {made.size}")


if __name__ == "__main__":
    main(*sys.argv[1:])
