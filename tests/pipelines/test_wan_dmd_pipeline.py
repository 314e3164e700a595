"""Few-step models against the algorithm as it is published, restated here step by step with the reference's models.

`diffusers` has no such pipeline. The noise levels are those of its flow-match Euler scheduler, which the authors use.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from tests import tiny_repos
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, load, load_reference, ours, picture, request


def published(reference: Any, prompts: list[str], shift: float, **fields: Any) -> torch.Tensor:
    """The videos [B, 3, T, H, W] in [0, 1]: three times the data is predicted, and twice noised again."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    vae = reference.vae
    space = vae.config.scale_factor_spatial
    size = ((fields["num_frames"] - 1) // 4 + 1, fields["height"] // space, fields["width"] // space)
    generator = torch.Generator("cpu").manual_seed(fields["seed"])
    latents = torch.randn(len(prompts), vae.config.z_dim, *size, generator=generator)
    steps = torch.tensor([1000, 757, 522])
    with torch.no_grad():
        text = reference.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=512)[0]
        for number, step in enumerate(steps):
            level = scheduler.sigmas[(scheduler.timesteps - step).abs().argmin()].double()
            velocity = reference.transformer(latents, step.expand(len(prompts)), text, return_dict=False)[0]
            data = (latents.double() - level * velocity.double()).float()
            if number < len(steps) - 1:
                following = (scheduler.timesteps - steps[number + 1]).abs().argmin()
                noise = torch.randn(latents.shape, generator=generator)
                latents = scheduler.scale_noise(data, scheduler.timesteps[following : following + 1], noise)
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        video: torch.Tensor = vae.decode(data * std + mean, return_dict=False)[0]
    return (video / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def pipeline(dmd_repo: Path) -> ComposedPipelineBase:
    """Ours."""
    return load(dmd_repo)


@pytest.mark.parametrize(
    "fields",
    [{}, {"height": 48, "width": 16, "num_frames": 13, "seed": 8}, {"num_frames": 1}],
    ids=["usual", "odd", "one-frame"],
)
@pytest.mark.parametrize("prompts", [[CAT], ["kite", "a blue star"]], ids=["one", "two"])
def test_three_steps(
    pipeline: ComposedPipelineBase, wan_repo: Path, fields: dict[str, Any], prompts: list[str]
) -> None:
    fields = request(guidance_scale=1.0, **fields)
    expected = published(load_reference(wan_repo), prompts, 8.0, **fields)
    assert difference(ours(pipeline, prompts, [""] * len(prompts), {}, **fields), expected) < LEVEL


def test_with_the_other_autoencoder(ti2v_repo: Path, tmp_path: Path) -> None:
    repo = tiny_repos.make_renamed_repo(tmp_path / "repo", ti2v_repo, "WanDMDPipeline")
    fields = request(guidance_scale=1.0, height=64, width=32)
    expected = published(load_reference(ti2v_repo), [CAT], 8.0, **fields)
    assert difference(ours(load(repo), [CAT], [""], {}, **fields), expected) < LEVEL


def test_the_noise_of_the_steps_comes_from_the_seed(pipeline: ComposedPipelineBase) -> None:
    fields = request(guidance_scale=1.0)
    first = ours(pipeline, [CAT], [""], {}, **fields)
    assert torch.equal(ours(pipeline, [CAT], [""], {}, **fields), first)
    assert not torch.equal(ours(pipeline, [CAT], [""], {}, **{**fields, "seed": 4}), first)


@pytest.mark.parametrize(
    ("media", "fields", "message"),
    [
        (
            {},
            {"num_inference_steps": 50},
            "num_inference_steps=50: this model is distilled for 3 steps, at 1000, 757",
        ),
        ({}, {"guidance_scale": 5.0}, "guidance_scale=5.0: this model has guidance in its weights; set it to 1"),
        ({"image": picture(8, 8)}, {}, "image: this model takes none"),
    ],
)
def test_a_bad_request_is_one_line(
    pipeline: ComposedPipelineBase, media: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ours(pipeline, [CAT], [""], media, **request(**{"guidance_scale": 1.0, **fields}))
    assert "\n" not in str(caught.value)
