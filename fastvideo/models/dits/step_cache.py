"""Step caches: which blocks run at a step of denoising, and what stands in for the others.

From step to step the residual that the blocks add to the tokens changes little, so at some steps that of an earlier one
is added again. The rules differ in how they tell when that will do:

- First-block cache (ParaAttention; `diffusers/hooks/first_block_cache.py`): the first block runs at every step, and its
  residual must have changed little since all blocks ran.
- TeaCache (arXiv 2411.19108): the timestep's modulation must have changed little in sum since then; a polynomial of the
  model's own turns its changes into those of the output.
- MagCache (arXiv 2506.09045; `diffusers/hooks/mag_cache.py`): how much the residual shrinks from step to step is nearly
  the same for all prompts, so it was measured once, and tells the error of skipping.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from fastvideo.models.dits.base import BaseDiT


class StepCache:
    """One kind of pass, such as the conditional one, of one model through the steps of one request.

    This one runs all blocks at every step.
    """

    def __init__(self) -> None:
        self.step = 0
        """That comes next, from 0."""
        self.timestep = 0.0
        """Its timestep."""
        self.asked = 0
        """The blocks of all passes so far, run or not."""
        self.block_runs = 0
        """Those of them that were run."""

    def run(self, model: "BaseDiT[Any]", tokens: torch.Tensor, context: Any) -> torch.Tensor:
        """The tokens [B, part of L, d] after the last block of `model`, or what stands in for them."""
        self.asked += len(model.blocks)
        return self.through(model.blocks, tokens, context)

    def through(self, blocks: Sequence[nn.Module] | nn.ModuleList, tokens: torch.Tensor, context: Any) -> torch.Tensor:
        """The tokens after `blocks`, which are run."""
        for block in blocks:
            tokens = block(tokens, context)
        self.block_runs += len(blocks)
        return tokens


@dataclass(frozen=True, kw_only=True)
class CacheRule:
    """When to skip. All ranks have the same one."""

    threshold: float
    """Blocks are skipped while the change is below it; 0 skips none."""
    retention: int = 0
    """So many steps at the start run all blocks."""
    max_skips: int | None = None
    """At most so many steps in a row skip; None is any number."""
    order: int = 0
    """0 adds the last residual again; 1 extrapolates the last two along the timesteps (arXiv 2503.06923, order 1)."""
    coefficients: tuple[float, ...] = ()
    """Of TeaCache's polynomial, the highest power first; or MagCache's ratio at each step."""


class SkippingCache(StepCache, ABC):
    """A cache that skips blocks; a subclass says what changes."""

    def __init__(self, rule: CacheRule) -> None:
        super().__init__()
        self.rule = rule
        self._skips = 0
        self._residuals: list[tuple[float, torch.Tensor]] = []
        """Timesteps at which all blocks ran, newest last, and what the blocks that can be skipped added."""

    def run(self, model: "BaseDiT[Any]", tokens: torch.Tensor, context: Any) -> torch.Tensor:
        """See `StepCache`."""
        self.asked += len(model.blocks)
        start, skippable = self.lead(model, tokens, context)
        change = self.change(model, tokens, start, context)
        most = self.rule.max_skips
        free = self.step >= self.rule.retention and (most is None or self._skips < most)
        if free and self._residuals and change < self.rule.threshold:
            self._skips += 1
            return start + self._residual()
        self._skips = 0
        self.computes(tokens, start)
        end = self.through(skippable, start, context)
        self._residuals = [*self._residuals, (self.timestep, end - start)][-1 - self.rule.order :]
        return end

    def lead(
        self, model: "BaseDiT[Any]", tokens: torch.Tensor, context: Any
    ) -> tuple[torch.Tensor, Sequence[nn.Module]]:
        """The tokens before the blocks that can be skipped, and those blocks: all, unless a rule runs some first."""
        return tokens, list(model.blocks)

    @abstractmethod
    def change(self, model: "BaseDiT[Any]", tokens: torch.Tensor, start: torch.Tensor, context: Any) -> float:
        """How much changed, such that the threshold decides; the same on all ranks. Called once a step."""

    @abstractmethod
    def computes(self, tokens: torch.Tensor, start: torch.Tensor) -> None:
        """All blocks run at this step: measure from here."""

    def _residual(self) -> torch.Tensor:
        last_time, last = self._residuals[-1]
        if len(self._residuals) == 1:
            return last
        time, residual = self._residuals[-2]
        # rounded timesteps may be equal
        along = (self.timestep - last_time) / (last_time - time) if last_time != time else 0.0
        return last + along * (last - residual)


class FirstBlockCache(SkippingCache):
    """The relative L1 change of the first block's residual since all blocks ran."""

    def __init__(self, rule: CacheRule) -> None:
        super().__init__(rule)
        self._first: torch.Tensor | None = None

    def lead(
        self, model: "BaseDiT[Any]", tokens: torch.Tensor, context: Any
    ) -> tuple[torch.Tensor, Sequence[nn.Module]]:
        first, *rest = model.blocks
        return self.through([first], tokens, context), rest

    def change(self, model: "BaseDiT[Any]", tokens: torch.Tensor, start: torch.Tensor, context: Any) -> float:
        if self._first is None:
            return torch.inf
        residual, before = (start - tokens).float(), self._first.float()
        sizes = torch.stack(((residual - before).abs().sum(dim=-1), before.abs().sum(dim=-1)))
        changed, all_of_it = model.sequence.total(sizes)
        return float(model.agree(changed / all_of_it))

    def computes(self, tokens: torch.Tensor, start: torch.Tensor) -> None:
        self._first = start - tokens


class TeaCache(SkippingCache):
    """The sum over the steps since all blocks ran of the rescaled relative L1 change of the timestep's modulation."""

    def __init__(self, rule: CacheRule) -> None:
        super().__init__(rule)
        self._before: torch.Tensor | None = None
        self._sum = 0.0

    def change(self, model: "BaseDiT[Any]", tokens: torch.Tensor, start: torch.Tensor, context: Any) -> float:
        now, before = getattr(context, model.timestep_input).float(), self._before
        self._before = now
        if before is None or self.step < self.rule.retention:
            return torch.inf
        relative = float(model.agree((now - before).abs().mean() / before.abs().mean()))
        self._sum += polynomial(self.rule.coefficients or (1.0, 0.0), relative)
        return self._sum

    def computes(self, tokens: torch.Tensor, start: torch.Tensor) -> None:
        self._sum = 0.0


class MagCache(SkippingCache):
    """The sum over the steps since all blocks ran of how far the residual's magnitude is from what is added again."""

    def __init__(self, rule: CacheRule) -> None:
        super().__init__(rule)
        self._ratio, self._error = 1.0, 0.0
        self._next = rule.retention

    def change(self, model: "BaseDiT[Any]", tokens: torch.Tensor, start: torch.Tensor, context: Any) -> float:
        if self.step < self.rule.retention:
            return torch.inf
        # guidance may have left out passes in between
        for ratio in self.rule.coefficients[self._next : self.step + 1]:
            self._ratio *= ratio
        self._next = self.step + 1
        self._error += abs(1 - self._ratio)
        return self._error

    def computes(self, tokens: torch.Tensor, start: torch.Tensor) -> None:
        self._ratio, self._error = 1.0, 0.0


STEP_CACHES: dict[str, Callable[[CacheRule], StepCache]] = {
    "none": lambda rule: StepCache(),
    "fbcache": FirstBlockCache,
    "teacache": TeaCache,
    "magcache": MagCache,
}
"""By the name that a request gives."""


def polynomial(coefficients: Sequence[float], x: float) -> float:
    """The value at `x` of the polynomial with `coefficients`, the highest power first."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


def resampled(values: Sequence[float], count: int) -> tuple[float, ...]:
    """`count` of `values`, evenly from the first to the last, each the nearest; the last one when `count` is 1."""
    if count == 1:
        return (values[-1],)
    # in fp32, as the reference rounds positions that lie half way
    places = torch.arange(count, dtype=torch.float32) * ((len(values) - 1) / (count - 1))
    return tuple(values[int(place)] for place in places.round())
