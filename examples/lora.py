"""One prompt at several strengths of a LoRA: `python examples/lora.py LORA [MODEL]`.

LORA is a .safetensors file, a folder or a Hub id.
"""

import sys

from fastvideo import SamplingParam, VideoGenerator

PROMPT = "a red circle moving left on a white background"


def main(lora: str, model: str = "shapes-t2v") -> None:
    """Make the videos."""
    with VideoGenerator.from_pretrained(model) as generator:
        sampling = SamplingParam.from_pretrained(model)
        report = generator.set_lora_adapter("style", lora)
        print(f"{report.applied} keys applied, {len(report.not_applied)} not")
        for strength in (0.0, 0.5, 1.0):
            generator.set_lora_adapter("style", strength=strength)
            path = f"video_samples/strength_{strength}.mp4"
            generator.generate_video(PROMPT, sampling_param=sampling, output_path=path)
        # in the weights it takes no time, which pays off over many videos
        generator.merge_lora_weights()
        generator.generate_video(PROMPT, sampling_param=sampling, output_path="video_samples/merged.mp4")
        print("see video_samples/")


if __name__ == "__main__":
    main(*sys.argv[1:])
