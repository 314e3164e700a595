"""A video from a prompt.

python examples/text_to_video.py                                        the model in the package
python examples/text_to_video.py Wan-AI/Wan2.1-T2V-1.3B-Diffusers "A vibrant city street at sunset."
python examples/text_to_video.py official_weights/Wan2.1-T2V-1.3B "A vibrant city street at sunset."
"""

import sys

from fastvideo import VideoGenerator
from fastvideo.configs.sample import SamplingParam


def main(model_id: str = "shapes-t2v", prompt: str = "a blue star spinning on a pink background") -> None:
    """Make one video of 45 frames in the folder `video_samples`."""
    generator = VideoGenerator.from_pretrained(model_id, num_gpus=1)
    # the model's own defaults; each field can be assigned until the generator uses it
    sampling = SamplingParam.from_pretrained(model_id)
    sampling.num_frames = 45
    video = generator.generate_video(prompt, sampling_param=sampling, output_path="video_samples", save_video=True)
    print(f"{video.video_path}: {video.generation_time:.1f} s, seed {video.seed}")
    generator.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
