"""`SamplingParam`: defaults, assignment, checks."""

from pathlib import Path
from typing import Any

import pytest

import fastvideo.api.sampling_param
import fastvideo.configs.sample
from fastvideo.configs.sample import SamplingParam
from fastvideo.configs.sample.wan import WAN21_NEGATIVE_PROMPT


def test_the_names_under_which_scripts_import_it() -> None:
    assert fastvideo.api.sampling_param.SamplingParam is SamplingParam
    assert fastvideo.SamplingParam is SamplingParam


@pytest.mark.parametrize(
    ("model", "size", "fps", "steps", "guidance", "negative"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", (480, 832, 81), 16, 50, 3.0, WAN21_NEGATIVE_PROMPT),
        ("Wan-AI/Wan2.1-T2V-1.3B", (480, 832, 81), 16, 50, 3.0, WAN21_NEGATIVE_PROMPT),
        ("Wan-AI/Wan2.1-T2V-14B-Diffusers", (720, 1280, 81), 16, 50, 5.0, WAN21_NEGATIVE_PROMPT),
        ("shapes-t2v", (96, 96, 17), 12, 20, 3.0, ""),
    ],
)
def test_defaults(model: str, size: tuple[int, int, int], fps: int, steps: int, guidance: float, negative: str) -> None:
    param = SamplingParam.from_pretrained(model)
    assert (param.height, param.width, param.num_frames) == size
    assert (param.fps, param.num_inference_steps, param.guidance_scale) == (fps, steps, guidance)
    assert param.negative_prompt == negative
    assert (param.seed, param.num_videos_per_prompt, param.guidance_rescale) == (1024, 1, 0)
    assert (param.output_path, param.save_video, param.return_frames) == ("outputs/", True, False)
    param.check()


def test_a_local_folder_has_the_defaults_of_its_class(wan_repo: Path, official_repo: Path) -> None:
    for folder in (wan_repo, official_repo):
        assert SamplingParam.from_pretrained(folder).width == 832
        assert SamplingParam.from_pretrained(str(folder) + "/").width == 832


def test_each_call_gives_a_param_of_its_own() -> None:
    one, two = (SamplingParam.from_pretrained("shapes-t2v") for _ in range(2))
    one.num_frames = 45
    assert two.num_frames == 17


def test_an_unknown_field_cannot_be_assigned() -> None:
    param = SamplingParam()
    with pytest.raises(ValueError, match=r"'num_frame': unknown field of SamplingParam; did you mean 'num_frames'\?"):
        param.num_frame = 45


def test_update_is_all_or_nothing() -> None:
    param = SamplingParam()
    param.update(seed=3, height=96)
    assert (param.seed, param.height) == (3, 96)
    with pytest.raises(ValueError, match="did you mean 'guidance_scale'"):
        param.update(seed=4, guidance_scal=1.0)
    assert param.seed == 3


BAD: list[tuple[str, Any, str]] = [
    ("num_inference_steps", 0, "must be a whole number, at least 1"),
    ("num_inference_steps", 2.5, "must be a whole number, at least 1"),
    ("num_inference_steps", True, "must be a whole number, at least 1"),
    ("height", 0, "must be a whole number, at least 1"),
    ("width", "832", "must be a whole number, at least 1"),
    ("num_frames", -3, "must be a whole number, at least 1"),
    ("fps", 0, "must be a whole number, at least 1"),
    ("num_videos_per_prompt", 0, "must be a whole number, at least 1"),
    ("guidance_scale", float("nan"), "must be a finite number, at least 0"),
    ("guidance_scale", float("inf"), "must be a finite number, at least 0"),
    ("guidance_scale", -1.0, "must be a finite number, at least 0"),
    ("guidance_scale", "3", "must be a finite number, at least 0"),
    ("guidance_rescale", 1.5, "must be a finite number, from 0 to 1"),
    ("seed", -1, "must be a whole number, at least 0"),
    ("seed", 2**63, "must be less than 2"),
    ("seed", None, "must be a whole number, at least 0"),
    ("negative_prompt", None, "must be a string"),
    ("output_path", "", "must be a path, not empty"),
    ("save_video", 1, "must be True or False"),
    ("return_frames", "yes", "must be True or False"),
]


@pytest.mark.parametrize(("name", "value", "rule"), BAD)
def test_check_says_value_and_rule(name: str, value: Any, rule: str) -> None:
    param = SamplingParam()
    setattr(param, name, value)
    with pytest.raises(ValueError) as error:
        param.check()
    assert str(error.value).startswith(f"{name}={value!r}: {rule}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("height", 100, "height=100: must be a multiple of 16; try 96"),
        ("width", 5, "width=5: must be a multiple of 16; try 16"),
        ("num_frames", 50, r"num_frames=50: must be 4k+1; try 49 or 53"),
        ("num_frames", 4, r"num_frames=4: must be 4k+1; try 1 or 5"),
    ],
)
def test_sizes_are_checked_against_the_numbers_of_a_pipeline(field: str, value: int, message: str) -> None:
    param = SamplingParam(height=96, width=96, num_frames=17)
    setattr(param, field, value)
    with pytest.raises(ValueError) as error:
        param.check_sizes(spatial=16, temporal=4)
    assert str(error.value) == message


def test_sizes_that_fit() -> None:
    SamplingParam(height=96, width=832, num_frames=81).check_sizes(spatial=16, temporal=4)
    SamplingParam(height=98, width=2, num_frames=80).check_sizes(spatial=2, temporal=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quality": "best"}, "quality='best': must be one of exact, high, fast"),
        ({"quality": "high", "cache": "fbcache"}, "cache='fbcache': quality='high' picks it; leave one of them out"),
        ({"quality": "fast", "cfg_gate_step": 0.5}, "cfg_gate_step=0.5: quality='fast' picks it"),
        ({"cache": "fb"}, "cache='fb': must be one of none, fbcache, teacache, magcache"),
        ({"cache_threshold": 0.1}, "cache_threshold=0.1: does nothing without a cache; choose cache='fbcache' or"),
        ({"cache_order": 1}, "cache_order=1: does nothing without a cache"),
        ({"cache": "fbcache", "cache_threshold": -1}, "cache_threshold=-1: must be a finite number, at least 0"),
        ({"cache": "fbcache", "cache_retention": 1.5}, "cache_retention=1.5: must be a finite number, from 0 to 1"),
        ({"cache": "fbcache", "cache_max_skips": 0}, "cache_max_skips=0: must be a whole number, at least 1"),
        ({"cache": "fbcache", "cache_order": 2}, "cache_order=2: must be 0 or 1"),
        ({"cache": "fbcache", "cache_coefficients": (1.0,)}, r"fbcache has none; .* teacache and magcache have"),
        ({"cache": "teacache", "cache_coefficients": ()}, r"cache_coefficients=\(\): must be a list of numbers"),
        ({"cache": "magcache", "cache_coefficients": [1, "a"]}, "cache_coefficients='a': must be a finite number"),
        ({"cfg_gate_step": 1.5}, "cfg_gate_step=1.5: must be a finite number, from 0 to 1"),
        ({"cfg_gate_step": 0.99}, "cfg_gate_step=0.99: none of 50 steps lies after it; use at most 0.98"),
        ({"cfg_gate_refresh": 2}, "cfg_gate_refresh=2: does nothing without a gate"),
        ({"cfg_gate_refresh": 1, "cfg_gate_step": 0.5}, "cfg_gate_refresh=1: would compute every step; use 2 or more"),
        ({"cfg_zero_star": 1}, "cfg_zero_star=1: must be True or False"),
        ({"zero_init_steps": 1}, "zero_init_steps=1: does nothing without cfg_zero_star"),
        ({"zero_init_steps": 50, "cfg_zero_star": True}, "zero_init_steps=50: leaves none of the 50 steps"),
        ({"guidance_interval": 0.5}, "guidance_interval=0.5: must be two numbers from 0 to 1"),
        ({"guidance_interval": (0.5, 0.2)}, r"guidance_interval=\(0.5, 0.2\): must be two numbers"),
        ({"guidance_interval": (0.5, 0.51)}, "none of 50 steps lies in it; widen it"),
    ],
)
def test_what_trades_quality_for_speed_is_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParam(**fields).check()


def test_lists_are_as_good_as_tuples() -> None:
    SamplingParam(guidance_interval=[0.2, 1.0]).check()  # type: ignore[arg-type]
    # a file has lists: this is the default
    SamplingParam(quality="high", guidance_interval=[0.0, 1.0]).check()  # type: ignore[arg-type]
    SamplingParam(cache="magcache", cache_coefficients=[1, 0.9]).check()  # type: ignore[arg-type]
