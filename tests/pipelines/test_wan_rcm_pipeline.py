"""One to four steps of a consistency model, against the published sampler restated in `rcm_published`."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.configs.registry import entry_for, find_entry
from fastvideo.entrypoints.reference import reference_pipeline
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.schedulers import build_scheduler
from fastvideo.models.schedulers.flow import TrigFlow
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.stages import DenoisingStage
from tests import tiny_repos
from tests.pipelines.rcm_published import published
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, load, load_reference, ours, picture, request


@pytest.fixture(scope="module")
def pipeline(rcm_repo: Path) -> ComposedPipelineBase:
    """Ours."""
    return load(rcm_repo)


@pytest.mark.parametrize(
    ("fields", "prompts"),
    [
        ({"num_inference_steps": 2, "height": 48, "width": 16, "num_frames": 13, "seed": 8}, ["kite", "a blue star"]),
    ],
)
def test_steps(pipeline: ComposedPipelineBase, wan_repo: Path, fields: dict[str, Any], prompts: list[str]) -> None:
    fields = request(guidance_scale=1.0, **fields)
    expected = published(load_reference(wan_repo), fields, {}, prompts)
    assert difference(ours(pipeline, prompts, [""] * len(prompts), {}, **fields), expected) < LEVEL


def test_a_diffusers_repo_with_this_scheduler(wan_repo: Path, tmp_path: Path) -> None:
    repo = tiny_repos.make_renamed_repo(tmp_path / "repo", wan_repo, "WanPipeline")
    config = {"_class_name": "RCMScheduler", "sigma_max": 80.0}
    (repo / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((repo / "model_index.json").read_text()) | {"scheduler": ["diffusers", "RCMScheduler"]}
    (repo / "model_index.json").write_text(json.dumps(index))
    assert entry_for(repo).name == "wan2.1-rcm-t2v-diffusers"
    assert reference_pipeline(resolve_repo(repo)) is None
    fields = request(guidance_scale=1.0, num_inference_steps=3)
    expected = published(load_reference(wan_repo), fields, {})
    assert difference(ours(load(repo), [CAT], [""], {}, **fields), expected) < LEVEL


def test_it_is_told_from_a_registered_model_of_the_same_sizes() -> None:
    sizes = {"num_layers": 30, "ffn_dim": 8960}
    configs = {"transformer": sizes, "scheduler": {"_class_name": "RCMScheduler"}, "model_index": {}}
    assert find_entry({"_class_name": "WanPipeline"}, configs).name == "wan2.1-rcm-t2v-diffusers"


def test_a_pipeline_that_has_no_noise_for_it_refuses_it() -> None:
    scheduler = build_scheduler("RCMScheduler", {})
    with pytest.raises(ValueError, match="scheduler RCMScheduler: this pipeline has no noise for its steps"):
        DenoisingStage(scheduler, pick=lambda timestep: None, conditions=lambda text: {})  # type: ignore[arg-type,return-value]


def test_the_levels_are_those_of_the_angles() -> None:
    scheduler = build_scheduler("RCMScheduler", {"sigma_max": 120.0, "mid_timesteps": [1.2]})
    assert isinstance(scheduler, TrigFlow)
    scheduler.set_timesteps(2)
    # cos(a) data + sin(a) noise, divided by cos(a) + sin(a), is on the flow
    expected = [math.sin(angle) / (math.cos(angle) + math.sin(angle)) for angle in (math.atan(120), 1.2)]
    assert scheduler.sigmas == [*expected, 0.0]
    assert torch.allclose(scheduler.timesteps, 1000 * torch.tensor(expected))


@pytest.mark.parametrize(
    ("config", "shift", "message"),
    [
        ({}, 3.0, "flow_shift=3.0: RCMScheduler has no shift; leave it None"),
        ({"sigma_mas": 80.0}, None, r"'sigma_mas'.*did you mean 'sigma_max'"),
    ],
)
def test_a_config_that_would_do_nothing(config: dict[str, Any], shift: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_scheduler("RCMScheduler", config, shift)


@pytest.mark.parametrize(
    ("media", "fields", "message"),
    [
        (
            {},
            {"num_inference_steps": 5},
            "num_inference_steps=5: this model is distilled for 1 to 4 steps; set it to 4",
        ),
        ({}, {"guidance_scale": 5.0}, "guidance_scale=5.0: this model has guidance in its weights; set it to 1"),
        ({"image": picture(8, 8)}, {}, "image: this model takes none"),
    ],
)
def test_a_bad_request_is_one_line(
    pipeline: ComposedPipelineBase, media: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ours(pipeline, [CAT], [""], media, **request(**{"guidance_scale": 1.0, "num_inference_steps": 2, **fields}))
    assert "\n" not in str(caught.value)
