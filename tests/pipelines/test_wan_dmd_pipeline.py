"""Few-step models against the algorithm as it is published, restated step by step in `parity_cases` with the models of
`diffusers`, which has no such pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from tests import tiny_repos
from tests.pipelines.parity_cases import distilled
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, load, load_reference, ours, picture, request


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
    expected = distilled(load_reference(wan_repo), fields, {}, prompts)
    assert difference(ours(pipeline, prompts, [""] * len(prompts), {}, **fields), expected) < LEVEL


def test_with_the_other_autoencoder(ti2v_repo: Path, tmp_path: Path) -> None:
    repo = tiny_repos.make_renamed_repo(tmp_path / "repo", ti2v_repo, "WanDMDPipeline")
    fields = request(guidance_scale=1.0, height=64, width=32)
    expected = distilled(load_reference(ti2v_repo), fields, {})
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
