"""Where a pipeline runs. Every executor holds one pipeline and runs batches through it, one at a time."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from fastvideo.models.loader.lora import LoraSet
from fastvideo.pipelines.composed_pipeline_base import Ended
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.pipelines.stages.together import OWN_FAULTS

T = TypeVar("T")


class Executor(Protocol):
    """Runs batches somewhere."""

    @property
    def attention_backend(self) -> str:
        """The name of the backend that the model's full-sequence attention runs on."""

    @property
    def threads(self) -> int:
        """Of torch on the CPU, in each process that computes."""

    def execute(self, batch: ForwardBatch) -> ForwardBatch:
        """`batch` with its video, stage times and peak memory; raises what the pipeline raises.

        Can be used again afterwards, whatever was raised.

        Raises:
            WorkerError: a process that computes failed by itself.
            RuntimeError: after `shutdown`.
        """

    def execute_together(self, batches: Sequence[ForwardBatch], ended: Ended) -> None:
        """Run `batches`, which are `alike`, to the results of `execute`, and together where that changes none.

        Args:
            batches: one or more, each with a control of its own.
            ended: called with the number of one of them and the batch, or what ended it alone, as soon as that is so.

        Raises:
            Exception: as `execute`, for one of them or all; those that have not ended by then have no result.
        """

    def adapt(self, loras: LoraSet) -> None:
        """Have the pipeline of every process run with `loras` from now on; waits for a batch that is running.

        After an error all is as it was before. Processes that are started anew get what was set last.

        Raises:
            ValueError: what the pipeline raises.
            WorkerError: a process that computes failed by itself.
            RuntimeError: after `shutdown`.
        """

    def on_first(self, make: Callable[[], T]) -> T:
        """What `make` gives, or raises, in the first of the processes that call this; files are its own to write."""

    def shutdown(self) -> None:
        """Free the pipeline and whatever runs it. Doing it twice is the same as once."""


def one_by_one(executor: Executor, batches: Sequence[ForwardBatch], ended: Ended) -> None:
    """`execute_together` for where requests never run together."""
    for number, batch in enumerate(batches):
        try:
            outcome: ForwardBatch | Exception = executor.execute(batch)
        except OWN_FAULTS as error:
            outcome = error
        ended(number, outcome)


class WorkerError(RuntimeError):
    """A rank failed by itself, which ended the request and all workers; the next request starts them anew."""

    def __init__(self, rank: int, message: str, traceback: str = "") -> None:
        """`traceback` is that of the rank, or where it stood; it shows as the cause of this error."""
        super().__init__(message)
        self.rank = rank
        self.traceback = traceback
        if traceback:
            self.__cause__ = RemoteTraceback(traceback)

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkerError, (self.rank, str(self), self.traceback)


class RemoteTraceback(Exception):  # noqa: N818 - shown as the cause of an error, never raised
    """Where an error of another process happened, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"
