"""A video of every prompt in a list, with one loaded model.

python examples/batch_of_prompts.py                              four prompts, the model in the package
python examples/batch_of_prompts.py prompts.txt                  a file with a prompt a line
python examples/batch_of_prompts.py prompts.txt MODEL            and another model
"""

import sys
from pathlib import Path

from fastvideo import VideoGenerator
from fastvideo.configs.sample import SamplingParam

PROMPTS = [
    "a red circle moving left on a white background",
    "a yellow star spinning on a navy background",
    "on teal, an orange square grows",
    "gray background, purple triangle, bouncing",
]


def main(prompts_file: str = "", model_id: str = "shapes-t2v") -> None:
    """Make the videos one after the other; each file is named after its prompt."""
    prompts = PROMPTS
    if prompts_file:
        prompts = [line.strip() for line in Path(prompts_file).read_text(encoding="utf-8").splitlines() if line.strip()]
    sampling = SamplingParam.from_pretrained(model_id)
    sampling.seed = 7
    # the generator frees the model at the end of the block
    with VideoGenerator.from_pretrained(model_id) as generator:
        # every prompt starts from the same seed, so one of them alone would give the same video
        videos = generator.generate_video(prompts, sampling_param=sampling, output_path="video_samples")
    for video in videos:
        print(f"{video.video_path}: {video.generation_time:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
