"""Previews: what the model has so far, small, and without a trace in the result."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastvideo import VideoGenerator
from fastvideo.models.loader.component_loader import load_component
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.schedulers import build_scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.pipeline_batch_info import Progress
from fastvideo.pipelines.stages.denoising import picture_of

SMALL: dict[str, Any] = {
    "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": 5,
    "save_video": False, "return_frames": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def generator(wan_repo: Path) -> Iterator[VideoGenerator]:
    """A generator of the tiny model in fp32."""
    with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu") as made:
        yield made


def test_some_steps_have_one_and_the_result_is_the_same(generator: VideoGenerator) -> None:
    seen: list[Progress] = []
    watched = generator.generate_video("kite", progress=seen.append, preview_every=2, **SMALL)
    alone = generator.generate_video("kite", progress=lambda progress: None, **SMALL)
    assert torch.equal(watched.samples, alone.samples)
    drawn = [(p.stage, p.step) for p in seen if p.preview is not None]
    assert drawn == [("denoising", 2)], "the last step has the video itself"
    picture = next(p.preview for p in seen if p.preview is not None)
    assert (picture.shape, picture.dtype) == ((32, 48, 3), np.uint8)
    assert picture.std() > 0


def test_reference_images_are_not_what_the_video_shows(vace_repo: Path) -> None:
    seen: list[Progress] = []
    references = [Image.new("RGB", (48, 32), colour) for colour in ("red", "blue")]
    with VideoGenerator.from_pretrained(vace_repo, precision="fp32", device="cpu") as made:
        video = made.generate_video("kite", progress=seen.append, preview_every=3, reference_images=references, **SMALL)
    pictures = [p.preview for p in seen if p.preview is not None]
    assert [p.shape for p in pictures] == [(32, 48, 3)]
    # the latents of the two images come first, and the preview is of those behind
    first = (video.samples[0, :, 0] * 255).permute(1, 2, 0).numpy()
    assert np.corrcoef(pictures[0].flatten(), first.flatten())[0, 1] > 0.9


def test_none_unless_asked_for(generator: VideoGenerator) -> None:
    seen: list[Progress] = []
    generator.generate_video("kite", progress=seen.append, **SMALL)
    assert {p.preview for p in seen} == {None}


@pytest.mark.parametrize("fields", [{"preview_every": -1}, {"preview_every": 2, "progress": None}])
def test_what_would_do_nothing_is_refused(generator: VideoGenerator, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="preview_every"):
        generator.generate_video("kite", **SMALL, **fields)


def test_the_first_frame_is_that_of_the_whole(wan_repo: Path) -> None:
    vae = load_component(resolve_repo(str(wan_repo)).components["vae"])
    assert isinstance(vae, AutoencoderKLWan)
    latents = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vae.first_frame(latents), vae.decode(latents)[:, :, 0])


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("UniPCMultistepScheduler",
         {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}),
    ],
)  # fmt: skip
def test_of_a_perfect_prediction_the_estimate_is_the_data(name: str, config: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    data, noise = (torch.randn(1, 2, 1, 4, 4, generator=generator) for _ in range(2))
    scheduler = build_scheduler(name, config)
    scheduler.set_timesteps(4)
    latents = noise
    for t in scheduler.timesteps:
        share = float(t) / 1000
        latents = (1 - share) * data + share * noise
        estimate = scheduler.clean(noise - data, t, latents)
        torch.testing.assert_close(estimate, data, atol=1e-5, rtol=0)


def test_of_another_kind_of_prediction_there_is_no_estimate() -> None:
    scheduler = build_scheduler("UniPCMultistepScheduler", {"prediction_type": "epsilon"})
    scheduler.set_timesteps(2)
    latents = torch.ones(1, 1, 1, 2, 2)
    assert scheduler.clean(latents * 3, scheduler.timesteps[0], latents) is latents


def test_a_large_frame_becomes_small() -> None:
    frame = torch.linspace(-1, 1, 3 * 512 * 1024).reshape(1, 3, 512, 1024)
    picture = picture_of(frame)
    assert picture.shape == (128, 256, 3)
    assert (picture[0, 0, 0], picture[-1, -1, 2]) == (0, 255)
