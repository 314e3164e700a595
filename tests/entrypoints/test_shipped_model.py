"""The model in the package: it loads without a network, and the reference draws the same frames from it."""

import numpy as np
import torch

from fastvideo import SamplingParam, VideoGenerator
from fastvideo.configs.registry import SHIPPED_MODEL, SHIPPED_NAME


def test_the_reference_draws_the_same_frames() -> None:
    from diffusers import WanPipeline

    prompt = "a red circle moving left on a white background"
    sampling = SamplingParam.from_pretrained(SHIPPED_NAME)
    sampling.update(num_frames=9, num_inference_steps=4, save_video=False, return_frames=True)
    with VideoGenerator.from_pretrained(SHIPPED_NAME, device="cpu") as generator:
        assert generator.entry.name == SHIPPED_NAME
        made = generator.generate_video(prompt, sampling)
    assert not isinstance(made, list)
    assert made.size == (sampling.height, sampling.width, 9)
    reference = WanPipeline.from_pretrained(SHIPPED_MODEL)
    reference.set_progress_bar_config(disable=True)
    expected = reference(
        prompt=prompt, negative_prompt=sampling.negative_prompt, height=sampling.height, width=sampling.width,
        num_frames=9, num_inference_steps=4, guidance_scale=sampling.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(sampling.seed), output_type="np",
    ).frames[0]  # fmt: skip
    assert np.abs(made.samples[0].permute(1, 2, 3, 0).numpy() - expected).max() < 1 / 255
