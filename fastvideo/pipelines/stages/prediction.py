"""What a step of denoising predicts: the passes of the model that it takes, and how guidance joins them."""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.speed import CACHES
from fastvideo.distributed.groups import Group
from fastvideo.models.dits.base import BaseDiT, Given
from fastvideo.models.dits.step_cache import STEP_CACHES, CacheRule, StepCache, resampled
from fastvideo.pipelines.pipeline_batch_info import BlockRuns

T = TypeVar("T")

PASSES = ("conditional", "unconditional")
"""What is predicted at a step; with two groups of ranks for guidance, each has its own."""
EPS = 1e-8


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598), rescaled by `rescale` (arXiv 2305.08891, section 3.4)."""

    scale: float
    rescale: float = 0.0

    def __call__(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """The guided prediction in fp32, all [B, C, t, h, w]: in bf16 the difference of two near equals is mostly
        rounding, which the scale then enlarges."""
        conditional, unconditional = conditional.float(), unconditional.float()
        guided = unconditional + self.scale * (conditional - unconditional)
        if not self.rescale:
            return guided
        axes = tuple(range(1, guided.ndim))
        ratio = conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
        return guided * (self.rescale * ratio + (1 - self.rescale))


Guide = Callable[[SamplingParam, torch.Tensor], Guidance]
"""The guidance at a timestep."""


def same_guidance(sampling: SamplingParam, timestep: torch.Tensor) -> Guidance:
    """The request's guidance at every timestep."""
    return Guidance(sampling.guidance_scale, sampling.guidance_rescale)


class At(NamedTuple):
    """Where a request is."""

    step: int
    """How many steps were taken."""
    t: torch.Tensor
    """The timestep, a scalar on the scheduler's scale."""
    latents: torch.Tensor
    """[B, C, t, h, w], what is denoised."""


@dataclass(frozen=True)
class Pass:
    """A pass of a model that a request asks for."""

    model: BaseDiT[Any]
    cache: StepCache
    """Runs its blocks."""
    given: Given

    def run(self) -> torch.Tensor:
        """The prediction [B, C, t, h, w]."""
        model = self.model
        model.step_cache = self.cache
        try:
            prediction: torch.Tensor = model(self.given.latents, self.given.timestep, **self.given.conditions)
        finally:
            model.step_cache = StepCache()
        return prediction


Asking = Generator[Pass, torch.Tensor, T]
"""What asks for passes, is sent what they predict, and gives something in the end. Who runs it may run the passes of
several requests together."""


def alone(asking: Asking[T]) -> T:
    """What `asking` gives in the end; its passes are run one by one."""
    try:
        wanted = next(asking)
        while True:
            wanted = asking.send(wanted.run())
    except StopIteration as end:
        result: T = end.value
        return result


class Predictor:
    """The predictions of one request, step by step. It is made for that request, so nothing is left of others."""

    def __init__(self, sampling: SamplingParam, steps: int, *, guide: Guide, cfg: Group) -> None:
        """For `steps` steps of `sampling`, which was checked; the passes of guidance are shared among `cfg`."""
        self.sampling = sampling
        self.steps = steps
        self.guide = guide
        self.cfg = cfg
        self._rule = cache_rule(sampling, steps)
        self._caches: dict[tuple[int, str], StepCache] = {}
        self._left_out = 0
        self._difference: torch.Tensor | None = None
        self._difference_of: BaseDiT[Any] | None = None
        self._at = At(0, torch.zeros(()), torch.zeros(()))

    def __call__(
        self,
        model: BaseDiT[Any],
        at: At,
        given: torch.Tensor,
        timestep: torch.Tensor,
        text: dict[str, Any],
        negative: dict[str, Any] | None,
    ) -> Asking[torch.Tensor]:
        """Asks for the passes of a step, and gives its prediction [B, C, t, h, w].

        Args:
            model: of this step.
            at: where in the schedule it is.
            given: the model's input [B, C or more, t, h, w].
            timestep: the model's timestep.
            text: the model's keywords for the prompts.
            negative: those for the negative prompts; None without guidance.
        """
        sampling, step = self.sampling, at.step
        self._at = at
        if negative is None:
            return (yield from self._run(model, PASSES[0], given, timestep, text))
        if step < self._zeros:
            self._leave_out(model, passes=2)
            return torch.zeros_like(at.latents)
        start, stop = (int(share * self.steps) for share in sampling.guidance_interval)
        if not start <= step < stop:
            return (yield from self._conditional(model, given, timestep, text))
        if self._reuses(model, step):
            assert self._difference is not None
            conditional = yield from self._conditional(model, given, timestep, text)
            unconditional = conditional - self._difference
        else:
            conditional, unconditional = yield from self.both(model, given, timestep, text, negative)
            if sampling.cfg_zero_star:
                unconditional = projected(conditional, unconditional)
            if self._gate < self.steps:
                self._difference, self._difference_of = conditional.float() - unconditional.float(), model
        return self.guide(sampling, at.t)(conditional, unconditional)

    def both(
        self,
        model: BaseDiT[Any],
        given: torch.Tensor,
        timestep: torch.Tensor,
        text: dict[str, Any],
        negative: dict[str, Any],
    ) -> Asking[tuple[torch.Tensor, torch.Tensor]]:
        """The conditional and the unconditional prediction: one after the other, or on two groups of ranks at once."""
        conditions = text, negative
        if self.cfg.size == 1:
            first = yield from self._run(model, PASSES[0], given, timestep, text)
            second = yield from self._run(model, PASSES[1], given, timestep, negative)
            return first, second
        mine = yield from self._run(model, PASSES[self.cfg.rank], given, timestep, conditions[self.cfg.rank])
        conditional, unconditional = self.cfg.all_gather(mine.unsqueeze(0)).unbind()
        return conditional, unconditional

    def block_runs(self, device: torch.device) -> BlockRuns:
        """Of all passes so far, on `device`; the same on every rank."""
        counts = torch.zeros(2, 2, dtype=torch.int64, device=device)
        for (_, name), cache in self._caches.items():
            counts[PASSES.index(name)] += torch.tensor([cache.block_runs, cache.asked], device=device)
        if self.cfg.size > 1:
            # each group of ranks has counted its own pass
            first, second = self.cfg.all_gather(counts.unsqueeze(0)).unbind()
            counts = torch.stack((first[0], second[1]))
        made, asked = counts.sum(dim=0).tolist()
        return BlockRuns(made, self._left_out + asked - made)

    @property
    def _zeros(self) -> int:
        """Steps that predict zero."""
        if not self.sampling.cfg_zero_star:
            return 0
        return 1 if self.sampling.zero_init_steps is None else self.sampling.zero_init_steps

    @property
    def _gate(self) -> float:
        """From this step on the difference of guidance is reused."""
        return self.steps if self.sampling.cfg_gate_step is None else self.steps * self.sampling.cfg_gate_step

    def _reuses(self, model: BaseDiT[Any], step: int) -> bool:
        """Whether the difference of an earlier step will do. That of another model will not."""
        if step < self._gate or self._difference_of is not model:
            return False
        refresh = self.sampling.cfg_gate_refresh
        return not refresh or (step - math.ceil(self._gate)) % refresh != refresh - 1

    def _conditional(
        self, model: BaseDiT[Any], given: torch.Tensor, timestep: torch.Tensor, text: dict[str, Any]
    ) -> Asking[torch.Tensor]:
        """The conditional prediction alone, in fp32."""
        self._leave_out(model, passes=1)
        # the other group has no cache of this pass: it waits
        if self.cfg.rank > 0:
            return self.cfg.broadcast(torch.empty_like(self._at.latents))
        prediction = yield from self._run(model, PASSES[0], given, timestep, text)
        return self.cfg.broadcast(prediction.float())

    def _run(
        self, model: BaseDiT[Any], name: str, given: torch.Tensor, timestep: torch.Tensor, conditions: dict[str, Any]
    ) -> Asking[torch.Tensor]:
        """One pass of `model`, whose blocks the cache of this kind of pass runs."""
        key = id(model), name
        if key not in self._caches:
            self._caches[key] = STEP_CACHES[self.sampling.cache](self._rule)
        cache = self._caches[key]
        cache.step, cache.timestep = self._at.step, float(self._at.t) if self.sampling.cache_order else 0.0
        asked = cache.asked
        prediction = yield Pass(model, cache, Given(given, timestep, conditions))
        if cache.asked == asked and self.sampling.cache != "none":
            raise RuntimeError(
                f"cache={self.sampling.cache!r}: {type(model).__name__} runs its blocks without asking it, so it would "
                "do nothing; use cache='none'"
            )
        return prediction

    def _leave_out(self, model: BaseDiT[Any], passes: int) -> None:
        self._left_out += passes * len(model.blocks)


def projected(conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
    """`unconditional` in fp32 scaled such that, sample by sample, it is as near to `conditional` as can be (CFG-Zero*,
    arXiv 2503.18886, equation 7)."""
    first, second = conditional.float(), unconditional.float()
    axes = tuple(range(1, first.ndim))
    dot = (first * second).sum(dim=axes, keepdim=True)
    return second * (dot / (second.square().sum(dim=axes, keepdim=True) + EPS))


def cache_rule(sampling: SamplingParam, steps: int) -> CacheRule:
    """What a request says of its step cache; where it says nothing, what the method usually does."""
    if sampling.cache == "none":
        return CacheRule(threshold=0.0)
    usual = CACHES[sampling.cache]
    threshold, retention = sampling.cache_threshold, sampling.cache_retention
    coefficients = tuple(sampling.cache_coefficients or ())
    return CacheRule(
        threshold=usual.threshold if threshold is None else threshold,
        retention=int((usual.retention if retention is None else retention) * steps + 0.5),
        max_skips=usual.max_skips if sampling.cache_max_skips is None else sampling.cache_max_skips,
        order=sampling.cache_order,
        coefficients=resampled(coefficients, steps) if sampling.cache == "magcache" else coefficients,
    )
