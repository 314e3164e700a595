"""A video in a few steps, of a model that was distilled to them; of some, from an image.

python examples/few_steps.py FastVideo/FastWan2.1-T2V-1.3B-Diffusers "A vibrant city street at sunset."
python examples/few_steps.py FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers "A kite over the sea" 1280x704 kite.jpg
python examples/few_steps.py my-rcm-folder "A vibrant city street at sunset." 832x480
"""

import sys

from fastvideo import VideoGenerator


def main(model_id: str, prompt: str, size: str = "832x448", image: str = "") -> None:
    """Make one video in the folder `video_samples`. Steps and guidance are the model's own."""
    width, height = map(int, size.split("x"))
    with VideoGenerator.from_pretrained(model_id) as generator:
        video = generator.generate_video(
            prompt, width=width, height=height, num_frames=61, image=image or None, output_path="video_samples"
        )
    print(f"{video.video_path}: {video.stage_times['denoising']:.1f} s of denoising")


if __name__ == "__main__":
    main(*sys.argv[1:])
