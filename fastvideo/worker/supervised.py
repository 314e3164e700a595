"""The executor of workers that run elsewhere: watches them, and starts them anew after one failed."""

import dataclasses
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from fastvideo.logger import init_logger
from fastvideo.models.loader.lora import LoraSet
from fastvideo.pipelines.composed_pipeline_base import Ended
from fastvideo.pipelines.pipeline_batch_info import BlockRuns, Control, ForwardBatch
from fastvideo.pipelines.stages.together import OWN_FAULTS
from fastvideo.worker.executor import one_by_one
from fastvideo.worker.tally import Agreed, Event, Failure, OneEnded, Reported, Stack, Tally

T = TypeVar("T")
logger = init_logger(__name__)

POLL_SECONDS = 0.05
"""Between looks at the cancel token and at who is alive."""
STACK_SECONDS = 2.0
"""For a worker to say where it stands."""


@dataclass(frozen=True)
class Loaded:
    """What a rank is done with when it has loaded."""

    attention_backend: str
    threads: int


@dataclass(frozen=True)
class Made:
    """What rank 0 is done with after a request."""

    video: torch.Tensor
    """[B, 3, T, H, W] fp32 in [0, 1] on the CPU."""
    stage_times: dict[str, float]
    peak_memory: int
    block_runs: BlockRuns | None
    together: int = 1


class Crew(Protocol):
    """Workers that were started together, one for each rank."""

    world: int

    def send(self, request: bytes) -> None:
        """Have all of them run a batch."""

    def send_together(self, requests: bytes) -> None:
        """Have the only one of them run several batches."""

    def adapt(self, loras: bytes) -> None:
        """Have all of them run with a set of LoRAs."""

    def poll(self, seconds: float) -> list[Event]:
        """What they say, waiting at most that long for the first word."""

    def cancel(self, which: int | None = None) -> None:
        """Have the request that they run stop at its next step; of several that of this number, or all."""

    def stacks(self, seconds: float) -> dict[int, Stack]:
        """Where those of them stand that answer in time, by rank."""

    def alive(self) -> bool:
        """Whether all processes are there."""

    def close(self) -> None:
        """End them all; nothing of them is left. Doing it twice is the same as once."""


class SupervisedExecutor:
    """Runs batches on the crew that `start` makes. See `Executor`."""

    def __init__(self, start: Callable[[], Crew], timeout: float | None) -> None:
        """Start the crew, and wait until it has loaded.

        Args:
            start: begins to start one.
            timeout: seconds without progress of a request after which it is given up; None waits.

        Raises:
            ValueError: what the ranks raise alike, such as for a repo that does not fit.
            WorkerError: a worker failed by itself.
        """
        self._start = start
        self._timeout = timeout
        self._closed = False
        self._loras = LoraSet()
        # one request at a time: a pipeline's scheduler remembers where in the schedule it is
        self._lock = threading.Lock()
        self._crew: Crew | None = self._loaded_crew()

    @property
    def attention_backend(self) -> str:
        return self._loaded.attention_backend

    @property
    def threads(self) -> int:
        return self._loaded.threads

    def execute(self, batch: ForwardBatch) -> ForwardBatch:
        """Run `batch`; a second thread waits until the first is done.

        What interrupts the wait ends the workers, and so does a worker that fails; the next call starts them anew.
        """
        with self._lock:
            crew = self._running_crew()
            request = pickle.dumps(sendable(batch))
            try:
                crew.send(request)
                made: Made = watch(crew, batch.control, self._timeout)[0]
            except Agreed as agreed:
                raise agreed.error from agreed.error.__cause__
            except BaseException:
                self._drop()
                raise
        return with_result(batch, made)

    def execute_together(self, batches: Sequence[ForwardBatch], ended: Ended) -> None:
        """See `Executor`."""
        with self._lock:
            crew = self._running_crew()
            if crew.world == 1:
                try:
                    crew.send_together(pickle.dumps([sendable(batch) for batch in batches]))
                    watch_together(crew, batches, self._timeout, ended)
                except Agreed as agreed:
                    raise agreed.error from agreed.error.__cause__
                except BaseException:
                    self._drop()
                    raise
                return
        one_by_one(self, batches, ended)

    def adapt(self, loras: LoraSet) -> None:
        """See `Executor`. What interrupts the wait ends the workers, as in `execute`."""
        with self._lock:
            crew = self._running_crew()
            try:
                self._adapt(crew, loras)
            except Agreed as agreed:
                raise agreed.error from agreed.error.__cause__
            except BaseException:
                self._drop()
                raise
            self._loras = loras

    def on_first(self, make: Callable[[], T]) -> T:
        """See `Executor`; there is one process that calls."""
        return make()

    def shutdown(self) -> None:
        """End the workers; waits for a batch that is running."""
        with self._lock:
            self._closed = True
            self._drop()

    def _running_crew(self) -> Crew:
        if self._closed:
            raise RuntimeError("the executor was shut down")
        if self._crew is not None and not self._crew.alive():
            logger.warning("a worker died while it had nothing to do")
            self._drop()
        if self._crew is None:
            logger.warning("starting the workers again")
            self._crew = self._loaded_crew()
        return self._crew

    def _loaded_crew(self) -> Crew:
        crew = self._start()
        try:
            self._loaded: Loaded = watch(crew, Control(), None, "while it loaded")[0]
            if self._loras != LoraSet():
                self._adapt(crew, self._loras)
        except Agreed as agreed:
            crew.close()
            raise agreed.error from agreed.error.__cause__
        except BaseException:
            crew.close()
            raise
        return crew

    @staticmethod
    def _adapt(crew: Crew, loras: LoraSet) -> None:
        crew.adapt(pickle.dumps(loras))
        watch(crew, Control(), None, "while it took on a LoRA")

    def _drop(self) -> None:
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()


def sendable(batch: ForwardBatch) -> ForwardBatch:
    """`batch` without those who watch it here."""
    return dataclasses.replace(batch, control=Control(preview_every=batch.control.preview_every))


def with_result(batch: ForwardBatch, made: Made) -> ForwardBatch:
    """`batch` with what a worker made of it."""
    batch.video, batch.peak_memory, batch.block_runs = made.video, made.peak_memory, made.block_runs
    batch.together = made.together
    batch.stage_times.update(made.stage_times)
    return batch


def watch(crew: Crew, control: Control, timeout: float | None, doing: str = "") -> dict[int, Any]:
    """What each rank is done with, once all are.

    Args:
        crew: which has been told what to do.
        control: told the progress, and asked for cancellation, here.
        timeout: seconds without progress after which it raises; None waits.
        doing: what the ranks do until they report progress, for messages.

    Raises:
        Agreed: all ranks raised the same, or `control.report` raised and they stopped; they can go on.
        WorkerError: a rank failed by itself, or is stuck.
    """

    def hear(event: Event) -> None:
        if isinstance(event, Reported):
            control.report(event.progress)

    return _watch(crew, timeout, doing, hear, lambda: [None] if control.cancel.cancelled else [])


def watch_together(crew: Crew, batches: Sequence[ForwardBatch], timeout: float | None, ended: Ended) -> None:
    """Pass on what becomes of `batches`, which `crew` was sent, until all have ended. Raises as `watch`."""

    def hear(event: Event) -> None:
        if isinstance(event, Reported):
            batches[event.which].control.report(event.progress)
        elif isinstance(event, OneEnded):
            ended(event.which, _outcome(batches[event.which], event.outcome))

    def leaving() -> list[int | None]:
        return [which for which, batch in enumerate(batches) if batch.control.cancel.cancelled]

    _watch(crew, timeout, "", hear, leaving)


def _outcome(batch: ForwardBatch, outcome: Made | Failure) -> ForwardBatch | Exception:
    if isinstance(outcome, Made):
        return with_result(batch, outcome)
    error = outcome.exception()
    assert isinstance(error, OWN_FAULTS), outcome
    return error


def _watch(
    crew: Crew, timeout: float | None, doing: str, hear: Callable[[Event], None],
    leaving: Callable[[], list[int | None]],
) -> dict[int, Any]:  # fmt: skip
    """As `watch`. `hear` is told what the ranks say, and `leaving` gives which requests are cancelled; None is all."""
    tally = Tally(crew.world, timeout, time.monotonic(), doing)
    told: set[int | None] = set()
    of_listener: Exception | None = None
    try:
        while not tally.finished:
            for which in [None] if of_listener is not None else leaving():
                if which not in told:
                    told.add(which)
                    crew.cancel(which)
            for event in crew.poll(POLL_SECONDS):
                tally.add(event, time.monotonic())
                if isinstance(event, (Reported, OneEnded)) and of_listener is None:
                    try:
                        hear(event)
                    except Exception as error:
                        of_listener = error
                    tally.moved = time.monotonic()  # the time of the listener is not the workers'
            tally.check(time.monotonic())
            if tally.stuck(time.monotonic()):
                raise tally.stuck_error(crew.stacks(STACK_SECONDS))
    except Agreed:
        if of_listener is None:
            raise
    if of_listener is not None:
        try:
            raise Agreed(of_listener)
        finally:
            del of_listener  # whose traceback has this frame, and so what was made by then
    return tally.values
