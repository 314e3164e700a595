"""Which requests can be made together."""

import json
from typing import Any

import pytest

from fastvideo.configs.sample import SamplingParam
from fastvideo.configs.sample.alike import alike

USUAL: dict[str, Any] = SamplingParam().to_dict()


@pytest.mark.parametrize(
    "fields",
    [{"seed": 7}, {"negative_prompt": "x"}, {"fps": 8}, {"guidance_scale": 2.0}, {"guidance_rescale": 0.5},
     {"guidance_scale_2": 1.5}, {"output_path": "x"}, {"return_frames": True}, {"image_path": "x.png"}],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_may_differ(fields: dict[str, Any]) -> None:
    assert alike(USUAL | fields) == alike(USUAL)


@pytest.mark.parametrize(
    "fields",
    [{"height": 16}, {"width": 16}, {"num_frames": 5}, {"num_inference_steps": 5}, {"guidance_scale": 1.0},
     {"num_videos_per_prompt": 2}, {"strength": 0.5}, {"cfg_zero_star": True}, {"cfg_gate_step": 0.5},
     {"guidance_interval": (0.1, 0.9)}, {"conditioning_scale": 0.5}, {"image_fit": "stretch"}],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_may_not(fields: dict[str, Any]) -> None:
    assert alike(USUAL | fields) != alike(USUAL)


def test_media_count() -> None:
    assert alike(USUAL, ("image",)) != alike(USUAL)
    assert alike(USUAL, ("video", "image")) == alike(USUAL, ("image", "video"))


@pytest.mark.parametrize("cache", ["fbcache", "teacache", "magcache"])
def test_never_with_a_step_cache(cache: str) -> None:
    assert alike(USUAL | {"cache": cache}) is None


def test_as_json_has_it() -> None:
    assert alike(json.loads(json.dumps(USUAL))) == alike(USUAL)
