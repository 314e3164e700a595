"""Several requests of one size that are denoised together, where no bit of a result depends on it.

A request asks for passes of the model. While all of them ask for passes of the same shapes, these run as one, in which
the blocks have the tokens of all clips (`BaseDiT.together`). Everything else, such as embedding, the scheduler's
arithmetic, noise, guidance, progress and cancelling, is each request's own.

Whether such a pass gives the bits that each clip gets alone need not be guessed: which kernel a product runs on, and so
in which order it adds up, follows from shapes, dtypes, strides, the device and the number of threads, and not from what
is in the tensors. So the first time that passes of some shapes are asked for they are run alone and together, and the
results are compared bit by bit; what was equal once is equal from then on, and what was not is run one by one. Where
kernels follow from the data, nothing is run together: attention that leaves keys out, and step caches.
"""

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastvideo.attention.layer import DistributedAttention
from fastvideo.logger import init_logger
from fastvideo.models.dits.base import BaseDiT, RunsAlone
from fastvideo.models.dits.step_cache import StepCache
from fastvideo.pipelines.pipeline_batch_info import Cancelled, ForwardBatch
from fastvideo.pipelines.stages.denoising import DenoisingStage
from fastvideo.pipelines.stages.prediction import Asking, Pass
from fastvideo.platforms.base import Platform, ran_out_of_memory
from fastvideo.platforms.cpu import return_freed_memory

logger = init_logger(__name__)

GAIN = 0.9
"""Passes go on together if that takes at most this share of the time that they take one by one: all requests then end
when the last one does, so a small gain would be a loss for most."""
TRIALS = 3
"""Timings of passes together, of which the best counts: the first ones of a size are slow."""
ROOM = 1.25
"""So many times the memory that a pass was seen to take has to be free for each."""
SHAPES = 10_000
"""That are remembered."""
OWN_FAULTS = (Cancelled, FloatingPointError)
"""What ends one request and leaves the others as they are."""


@dataclass
class Pace:
    """Seconds of the passes of one size."""

    alone: float
    together: list[float] = field(default_factory=list)

    @property
    def worth_it(self) -> bool:
        """Whether they should go on together, as far as is known."""
        return len(self.together) < TRIALS or min(self.together) <= GAIN * self.alone


class Knowledge:
    """What was seen of passes together; it outlives requests."""

    def __init__(self) -> None:
        self.equal: dict[Hashable, bool] = {}
        """Whether passes of these shapes give the bits that they give alone."""
        self.pace: dict[Hashable, Pace] = {}
        """Of so many passes of a size."""
        self.bytes: dict[Hashable, int] = {}
        """Memory that one pass of a size takes while it runs."""

    def note(self, shapes: Hashable, equal: bool) -> None:
        """Remember whether passes of these shapes can run together."""
        if len(self.equal) >= SHAPES:
            self.equal.clear()
        self.equal[shapes] = equal


class Member:
    """One request of several: what it asks for, or how it ended."""

    def __init__(self, stage: DenoisingStage, batch: ForwardBatch) -> None:
        """`batch` has just been through the stages before `stage`."""
        self.batch = batch
        self.wanted: Pass | None = None
        """None before it began, and once it ended."""
        self.error: Exception | None = None
        self.seconds = 0.0
        """For which it was worked on."""
        self._stage = stage
        self._asking: Asking[ForwardBatch] = stage.asking(batch)
        self._schedule = stage.scheduler.fork()

    def go_on(self, prediction: torch.Tensor | None = None) -> None:
        """Take what the last pass predicted, and ask for the next one, or end."""
        self._stage.scheduler.resume(self._schedule)
        try:
            self.wanted = next(self._asking) if prediction is None else self._asking.send(prediction)
        except StopIteration:
            self.wanted = None
        except OWN_FAULTS as error:
            self.wanted, self.error = None, error

    def finish(self) -> None:
        """Run what is left, alone.

        Raises:
            Cancelled, FloatingPointError: what ended it.
        """
        started = time.perf_counter()
        while self.wanted is not None:
            self._stage.use(self.wanted.model)
            self.go_on(self.wanted.run())
        self.seconds += time.perf_counter() - started
        self.batch.stage_times[self._stage.name] = self.seconds
        if self.error is not None:
            raise self.error


class Crowd:
    """Requests that one stage denoises."""

    def __init__(self, members: list[Member], platform: Platform, known: Knowledge) -> None:
        self.members = members
        self.peak = 0
        """The most memory that was in use before `platform` was told to forget it."""
        self._platform = platform
        # of this thread where it computes itself, so that what other programs do does not count
        self._clock = time.thread_time if platform.device_type == "cpu" else time.perf_counter
        self._known = known
        self._fitting: dict[Hashable, int] = {}

    def run(self) -> None:
        """Denoise together as long as that changes nothing and gains something. What is left is for `finish`."""
        started = time.perf_counter()
        for member in self.members:
            member.go_on()
        active, on = self.members, True
        while on:
            active = self._within_memory([member for member in active if member.wanted is not None])
            wanted = [member.wanted for member in active if member.wanted is not None]
            if len(wanted) < 2:
                break
            predictions, on = self._predicted(wanted)
            for member, prediction in zip(active, predictions, strict=True):
                member.batch.together = len(active) if on else 1
                member.go_on(prediction)
        for member in self.members:
            member.seconds = time.perf_counter() - started
            if member.wanted is not None:
                member.batch.together = 1

    def _within_memory(self, active: list[Member]) -> list[Member]:
        """As many of `active`, from the first, as there is memory for; the others have to wait."""
        size = size_of([member.wanted for member in active[:1] if member.wanted is not None])
        one = self._known.bytes.get(size, 0)
        if not one:
            return active
        if size not in self._fitting:
            return_freed_memory()
            self._fitting[size] = max(1, int(self._platform.available_memory() / (ROOM * one)))
        return active[: self._fitting[size]]

    def _predicted(self, passes: list[Pass]) -> tuple[list[torch.Tensor], bool]:
        """The predictions of `passes`, and whether the next ones should be run together too."""
        known, size, shapes = self._known, size_of(passes), shapes_of(passes)
        if size is None or shapes is None or why_alone(passes[0].model) or not known.equal.get(shapes, True):
            return [one.run() for one in passes], False
        pace = known.pace.get(size)
        if pace is None:
            # how long they take, and how much memory
            known.pace[size] = Pace(math.inf)
            return self._alone(passes, known.pace[size]), True
        if not pace.worth_it:
            return [one.run() for one in passes], False
        if shapes not in known.equal:
            expected = self._alone(passes, pace)
            tried = self._together(passes, pace)
            equal = tried is not None and all(map(same_bits, tried, expected))
            known.note(shapes, equal)
            if not equal:
                logger.info("requests run one by one: %d passes at a time round otherwise", len(passes))
            return expected, equal and pace.worth_it
        predictions = self._together(passes, pace)
        if predictions is None:
            known.note(shapes, False)
            return [one.run() for one in passes], False
        for one in passes:
            one.cache.asked += len(one.model.blocks)
            one.cache.block_runs += len(one.model.blocks)
        return predictions, pace.worth_it

    def _alone(self, passes: list[Pass], pace: Pace) -> list[torch.Tensor]:
        """Run them one by one, timed, and the memory of one measured."""
        started = self._clock()
        size, predictions = size_of(passes[:1]), []
        for one in passes:
            measured = size not in self._known.bytes
            if measured:
                self._platform.synchronize()
                self.peak = max(self.peak, self._platform.peak_memory())
                self._platform.reset_peak_memory()
                before = self._platform.peak_memory()
            predictions.append(one.run())
            if measured:
                self._platform.synchronize()
                self._known.bytes[size] = max(0, self._platform.peak_memory() - before)
        self._platform.synchronize()
        pace.alone = min(pace.alone, self._clock() - started)
        return predictions

    def _together(self, passes: list[Pass], pace: Pace) -> list[torch.Tensor] | None:
        """Run them at once; None where that cannot be."""
        started, model = self._clock(), passes[0].model
        try:
            predictions = model.together([one.given for one in passes])
        except RunsAlone as error:
            logger.info("requests run one by one: %s", error)
            return None
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            logger.info("requests run one by one: memory is not enough for %d at a time", len(passes))
            return None
        if len(pace.together) < TRIALS:
            self._platform.synchronize()
            pace.together.append(self._clock() - started)
            if not pace.worth_it:
                logger.info("requests run one by one: %d at a time are not quicker", len(passes))
        return predictions


def why_alone(model: BaseDiT[Any]) -> str | None:
    """Why the passes of `model` are never run together, or None where they may be."""
    if model.compiled:
        return "its blocks would be compiled once more for each number of clips"
    layers = [module for module in model.modules() if isinstance(module, DistributedAttention)]
    inexact = next((layer.backend.name for layer in layers if not layer.backend.exact), None)
    return f"what {inexact} leaves out is up to what is in the clips" if inexact else None


def size_of(passes: Sequence[Pass]) -> Hashable | None:
    """What says how much passes compute, up to the length of texts; None where they are not all alike."""
    sizes = {(id(one.model), tuple(one.given.latents.shape), torch.get_num_threads()) for one in passes}
    return (*sizes.pop(), len(passes)) if len(sizes) == 1 else None


def shapes_of(passes: Sequence[Pass]) -> Hashable | None:
    """What says on which kernels passes run: all of what is given to them but the numbers in tensors. None where
    something else decides too."""
    found: list[Hashable] = [torch.get_num_threads()]
    for one in passes:
        if type(one.cache) is not StepCache:
            return None
        found.append(id(one.model))
        given = {"": one.given.latents, " ": one.given.timestep, **one.given.conditions}
        for name, value in sorted(given.items()):
            if isinstance(value, torch.Tensor):
                found.append((name, tuple(value.shape), value.stride(), value.dtype, value.device))
            elif value is None or isinstance(value, (int, float, str)):
                found.append((name, value))
            elif isinstance(value, (list, tuple)) and all(isinstance(number, (int, float)) for number in value):
                found.append((name, *value))
            else:
                return None
    return tuple(found)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bytes; NaN is equal to itself, and 0 is not equal to -0."""
    first, second = (tensor.contiguous().view(torch.uint8) for tensor in (one, other))
    return torch.equal(first, second)
