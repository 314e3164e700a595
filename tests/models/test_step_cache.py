"""Step caches by themselves, on a model whose blocks add what the test says."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from fastvideo.configs.registry import COMPONENTS
from fastvideo.models.dits.base import BaseDiT, WholeSequence, alone
from fastvideo.models.dits.step_cache import STEP_CACHES, CacheRule, StepCache, polynomial, resampled
from fastvideo.utils import resolve


@dataclass
class Context:
    """What the blocks are told."""

    added: float
    signal: torch.Tensor


class Add(nn.Module):
    """Adds to every token what the context says."""

    def forward(self, tokens: torch.Tensor, context: Context) -> torch.Tensor:
        return tokens + context.added


class Model(SimpleNamespace):
    """As much of a transformer as a cache asks for: two blocks."""

    timestep_input: ClassVar[str] = "signal"

    def __init__(self) -> None:
        super().__init__(blocks=nn.ModuleList([Add(), Add()]), sequence=WholeSequence(), agree=alone)


def residuals(cache: StepCache, added: list[float], signals: list[float] | None = None) -> list[float]:
    """What the blocks of a model seem to add at timesteps 100, 90, 80 and on, where each of its two adds `added`."""
    model, tokens, seen = Model(), torch.zeros(1, 3, 4), []
    for step, value in enumerate(added):
        cache.step, cache.timestep = step, 100.0 - 10 * step
        signal = torch.full((1, 6, 4), signals[step] if signals else 1.0)
        seen.append(round(float(cache.run(model, tokens, Context(value, signal)).mean()), 4))  # type: ignore[arg-type]
    return seen


def cache_of(name: str, **fields: Any) -> StepCache:
    """The cache `name` with a rule of `fields`."""
    return STEP_CACHES[name](CacheRule(**{"threshold": 1e9, **fields}))


def test_without_a_cache_all_blocks_run() -> None:
    cache = cache_of("none")
    assert residuals(cache, [1.0, 2.0]) == [2.0, 4.0]
    assert (cache.asked, cache.block_runs) == (4, 4)


def test_the_last_residual_stands_in() -> None:
    cache = cache_of("magcache", coefficients=(1.0,) * 4)
    assert residuals(cache, [1.0, 2.0, 3.0, 4.0]) == [2.0, 2.0, 2.0, 2.0]
    assert (cache.asked, cache.block_runs) == (8, 2)


def test_order_one_follows_a_straight_line() -> None:
    cache = cache_of("magcache", coefficients=(1.0,) * 6, order=1, retention=2)
    assert residuals(cache, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    assert cache.block_runs == 4
    flat = cache_of("magcache", coefficients=(1.0,) * 6, order=0, retention=2)
    assert residuals(flat, [1.0, 2.0, 3.0]) == [2.0, 4.0, 4.0]


def test_the_first_block_is_compared_with_the_step_that_ran_all() -> None:
    # changes of 5% each: the third is 10% from the first
    cache = cache_of("fbcache", threshold=0.08)
    assert residuals(cache, [1.0, 1.05, 1.1025, 1.1]) == [2.0, 2.05, 2.205, 2.2025]
    assert cache.block_runs == 6


def test_changes_of_the_timestep_add_up() -> None:
    cache = cache_of("teacache", threshold=0.25)
    # 0.1 and 0.2 more, then 0.1 again: with the second the sum is above the threshold, with which it starts anew
    assert residuals(cache, [1.0, 2.0, 3.0, 4.0], [1.0, 1.1, 1.32, 1.452]) == [2.0, 2.0, 6.0, 6.0]


def test_ratios_of_steps_that_guidance_left_out_count() -> None:
    cache = cache_of("magcache", threshold=0.15, coefficients=(1.0, 0.9, 0.9, 0.9))
    model, tokens = Model(), torch.zeros(1, 3, 4)
    for step in (0, 2):
        cache.step = step
        cache.run(model, tokens, Context(1.0, torch.ones(1)))  # type: ignore[arg-type]
    # 0.9 would do, 0.81 does not
    assert cache.block_runs == 4


def test_the_polynomial_has_its_highest_power_first() -> None:
    assert polynomial((2.0, 0.0, -1.0), 3.0) == 17.0
    assert polynomial((1.0, 0.0), 0.3) == 0.3


@pytest.mark.parametrize("count", [1, 2, 5, 20, 50, 77])
def test_ratios_are_resampled_like_the_reference(count: int) -> None:
    from diffusers.hooks.mag_cache import nearest_interp

    values = tuple(float(number) for number in range(50))
    assert list(resampled(values, count)) == nearest_interp(torch.tensor(values), count).tolist()


def test_every_transformer_says_what_tea_cache_compares_and_leaves_the_rest_to_the_base() -> None:
    models = [resolve(entry.model) for entry in COMPONENTS]
    transformers = [model for model in models if issubclass(model, BaseDiT)]
    assert transformers
    for model in transformers:
        context = next(base for base in model.__orig_bases__ if base.__origin__ is BaseDiT).__args__[0]
        assert model.timestep_input in context.__dataclass_fields__, model
        assert model.run_blocks is BaseDiT.run_blocks, model
        assert model.forward is BaseDiT.forward, model
