"""What of a request trades quality for speed: step caches and ways to compute guidance less often."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastvideo.configs.base import require_bool, require_number, require_whole
from fastvideo.utils import require

if TYPE_CHECKING:
    from fastvideo.configs.sample.base import SamplingParam

QUALITIES = ("exact", "high", "fast")


@dataclass(frozen=True, kw_only=True)
class CacheDefaults:
    """What a step cache does where a request does not say. Source: the reference, or the method's authors."""

    threshold: float
    retention: float = 0.0
    max_skips: int | None = None
    coefficients: bool = True
    """Whether it uses numbers of the model."""


CACHES = {
    "fbcache": CacheDefaults(threshold=0.05, coefficients=False),
    "teacache": CacheDefaults(threshold=0.05, retention=0.1),
    "magcache": CacheDefaults(threshold=0.06, retention=0.2, max_skips=3),
}
"""The step caches."""

OF_CACHE: dict[str, Any] = {
    "cache_threshold": None, "cache_retention": None, "cache_max_skips": None, "cache_order": 0,
    "cache_coefficients": None,
}  # fmt: skip
"""Fields that do nothing without a cache, and their defaults."""
OF_GUIDANCE: dict[str, Any] = {
    "cfg_gate_step": None, "cfg_gate_refresh": 0, "cfg_zero_star": False, "zero_init_steps": None,
    "guidance_interval": (0.0, 1.0),
}  # fmt: skip
"""Fields that do nothing without guidance, and their defaults."""
SPEED: dict[str, Any] = {"cache": "none", **OF_CACHE, **OF_GUIDANCE}
"""All that `quality` picks, and the values that change nothing."""
IN_A_ROW = 2


def check_speed(sampling: "SamplingParam") -> None:
    """Check the fields of `SPEED` and `quality`, each by itself and together.

    Raises:
        ValueError: the field, its value, the rule, and what to do.
    """
    quality, cache = sampling.quality, sampling.cache
    require(quality is None or quality in QUALITIES, "quality", quality, f"must be one of {', '.join(QUALITIES)}")
    require(cache in ("none", *CACHES), "cache", cache, f"must be one of none, {', '.join(CACHES)}")
    for name in given(sampling, SPEED) if quality not in (None, "exact") else ():
        require(False, name, getattr(sampling, name), f"quality={quality!r} picks it",
                "leave one of them out")  # fmt: skip
    for name in given(sampling, OF_CACHE) if cache == "none" else ():
        require(False, name, getattr(sampling, name), "does nothing without a cache",
                f"choose cache={' or '.join(map(repr, CACHES))}, or leave it out")  # fmt: skip
    _check_cache(sampling)
    _check_guidance(sampling)


def given(sampling: "SamplingParam", fields: dict[str, Any]) -> list[str]:
    """Those of `fields` that do not have the value there."""
    values = {name: getattr(sampling, name) for name in fields}
    # what was read from a file has lists
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return [name for name, value in plain.items() if value != fields[name]]


def _check_cache(sampling: "SamplingParam") -> None:
    if sampling.cache_threshold is not None:
        require_number("cache_threshold", sampling.cache_threshold, 0)
    if sampling.cache_retention is not None:
        require_number("cache_retention", sampling.cache_retention, 0, 1)
    if sampling.cache_max_skips is not None:
        require_whole("cache_max_skips", sampling.cache_max_skips, 1, "leave it None for any number")
    require_whole("cache_order", sampling.cache_order, 0)
    require(sampling.cache_order <= 1, "cache_order", sampling.cache_order, "must be 0 or 1")
    numbers, cache = sampling.cache_coefficients, sampling.cache
    if numbers is None:
        return
    require(isinstance(numbers, (list, tuple)) and len(numbers) > 0, "cache_coefficients", numbers,
            "must be a list of numbers")  # fmt: skip
    for number in numbers:
        require_number("cache_coefficients", number, float("-inf"))
    takers = [name for name, defaults in CACHES.items() if defaults.coefficients]
    require(cache in takers, "cache_coefficients", numbers, f"{cache} has none",
            f"leave it out; {' and '.join(takers)} have")  # fmt: skip


def _check_guidance(sampling: "SamplingParam") -> None:
    steps, gate, refresh = sampling.num_inference_steps, sampling.cfg_gate_step, sampling.cfg_gate_refresh
    if gate is not None:
        require_number("cfg_gate_step", gate, 0, 1)
        # the first step is computed whatever the gate
        last = (steps - 1) / steps
        require(gate == 1 or (gate <= last and steps > 1), "cfg_gate_step", gate,
                f"none of {steps} steps lies after it", f"use at most {last:.3g}, or 1, which is no gate")  # fmt: skip
    require_whole("cfg_gate_refresh", refresh, 0)
    if refresh:
        require(refresh >= IN_A_ROW, "cfg_gate_refresh", refresh, "would compute every step",
                f"use {IN_A_ROW} or more, or 0, which computes none after the gate")  # fmt: skip
        require(gate is not None and gate < 1, "cfg_gate_refresh", refresh, "does nothing without a gate",
                "set cfg_gate_step below 1")  # fmt: skip
    require_bool("cfg_zero_star", sampling.cfg_zero_star)
    zeros = sampling.zero_init_steps
    if zeros is not None:
        require_whole("zero_init_steps", zeros, 0)
        require(sampling.cfg_zero_star, "zero_init_steps", zeros, "does nothing without cfg_zero_star",
                "set cfg_zero_star=True, or leave it out")  # fmt: skip
    if sampling.cfg_zero_star:
        count = 1 if zeros is None else zeros
        require(count < steps, "zero_init_steps", count, f"leaves none of the {steps} steps", "use fewer")
    interval = sampling.guidance_interval
    rule = "must be two numbers from 0 to 1, the start before the stop, such as (0.2, 1.0)"
    pair = isinstance(interval, (list, tuple)) and len(interval) == 2
    require(pair, "guidance_interval", interval, rule)
    for number in interval:
        require_number("guidance_interval", number, 0, 1)
    require(interval[0] < interval[1], "guidance_interval", interval, rule)
    require(int(interval[0] * steps) < int(interval[1] * steps), "guidance_interval", interval,
            f"none of {steps} steps lies in it", "widen it, or use guidance_scale=1")  # fmt: skip
