"""What ranks say while they work on one thing, and what it amounts to: done, an error of all, or a broken worker."""

import pickle
import traceback
from dataclasses import dataclass, field
from typing import Any

import torch

from fastvideo.distributed.groups import waiting
from fastvideo.pipelines.pipeline_batch_info import Progress
from fastvideo.platforms.base import ran_out_of_memory
from fastvideo.worker.executor import RemoteTraceback, WorkerError

GRACE_SECONDS = 5.0
"""After one rank raised, for the others to raise the same."""
MEMORY_HINT = "use a smaller size, a lower precision, or more devices"
_COLLECTIVES = ("/torch/distributed/", "/fastvideo/distributed/groups.py")
"""Files whose RuntimeErrors mean that another rank is not there."""


@dataclass(frozen=True)
class Failure:
    """An exception of one rank."""

    kind: str
    """The exception's class, with its module."""
    message: str
    traceback: str
    pickled: bytes | None
    """The exception itself; None when it cannot be carried."""
    memory: bool
    """Whether memory ran out."""
    follows: bool
    """Whether it was raised by waiting for another rank, which then is the one to blame."""
    usable: bool
    """Whether the rank can work on."""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """What there is to say of `error`, which was just caught."""
        memory = ran_out_of_memory(error)
        frames = traceback.extract_tb(error.__traceback__)
        innermost = frames[-1].filename if frames else ""
        follows = isinstance(error, RuntimeError) and any(part in innermost for part in _COLLECTIVES)
        return cls(
            kind=f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
            message=str(error),
            traceback="".join(traceback.format_exception(type(error), error, error.__traceback__)),
            pickled=_pickled(error),
            memory=memory,
            follows=follows,
            # an error of the device itself leaves it unusable for the process
            usable=not (memory or follows or isinstance(error, torch.AcceleratorError)),
        )

    def alike(self, other: "Failure") -> bool:
        """Whether two ranks raised the same."""
        return (self.kind, self.message) == (other.kind, other.message)

    def exception(self) -> BaseException | None:
        """The exception, with the rank's traceback as its cause; None when it could not be carried."""
        if self.pickled is None:
            return None
        try:
            error: BaseException = pickle.loads(self.pickled)
        except Exception:  # its class need not be importable here
            return None
        error.__cause__ = RemoteTraceback(self.traceback)
        return error


@dataclass(frozen=True)
class Reported:
    """How far the ranks are."""

    progress: Progress
    which: int = 0
    """Of several requests, the one that it is about."""


@dataclass(frozen=True)
class OneEnded:
    """One of several requests has ended."""

    which: int
    outcome: Any
    """What was made, or a `Failure`."""


@dataclass(frozen=True)
class Finished:
    """A rank is done, with `value`."""

    rank: int
    value: Any = None


@dataclass(frozen=True)
class Failed:
    """A rank raised."""

    rank: int
    failure: Failure


@dataclass(frozen=True)
class Died:
    """The process of a rank is gone."""

    rank: int
    how: str
    """Such as "was killed by SIGTERM"."""
    hint: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Stack:
    """Where a rank stands."""

    text: str
    """Its stack, innermost call last."""
    place: str
    """That call."""
    waiting: str
    """The collective that it is in; empty when it computes."""

    @classmethod
    def of(cls, frames: traceback.StackSummary) -> "Stack":
        """That of a thread of this process, whose rank's pipeline it runs."""
        inside = [frame.name for frame in frames if _COLLECTIVES[0] in frame.filename]
        last = frames[-1]
        return cls(
            text="".join(traceback.format_list(frames)),
            place=f"{last.name} ({last.filename}:{last.lineno})",
            waiting=(waiting[-1:] or inside[-1:] or [""])[0],
        )


Event = Reported | OneEnded | Finished | Failed | Died


class Agreed(Exception):  # noqa: N818 - an outcome
    """All ranks ended with `error`, and can work on."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class Tally:
    """Counts what the ranks say; times are in seconds of one clock."""

    world: int
    timeout: float | None
    """Seconds without progress after which the ranks are stuck; None is never."""
    moved: float
    """When the last progress was made."""
    doing: str = ""
    """What the ranks do, as it reads at the end of a message: "while it loaded"."""
    values: dict[int, Any] = field(default_factory=dict)
    """Of the ranks that are done."""
    failures: dict[int, Failure] = field(default_factory=dict)
    """Of those that raised, in the order in which they said so."""
    dead: Died | None = None
    failed_at: float = 0.0
    """When the first rank raised."""

    @property
    def finished(self) -> bool:
        """Whether all ranks are done."""
        return len(self.values) == self.world

    @property
    def quiet(self) -> list[int]:
        """The ranks that have not ended, neither way."""
        return [rank for rank in range(self.world) if rank not in self.values and rank not in self.failures]

    def add(self, event: Event, now: float) -> None:
        """Take note of `event`."""
        if isinstance(event, Reported):
            done = event.progress
            self.doing = f"during {done.stage}" + (f", {done.step} of {done.total} done" if done.total > 1 else "")
            self.moved = now
        elif isinstance(event, OneEnded):
            self.moved = now
        elif isinstance(event, Finished):
            self.values[event.rank] = event.value
            self.moved = now
        elif isinstance(event, Died):
            self.dead = self.dead or event
        else:
            self.failed_at = self.failed_at if self.failures else now
            self.failures[event.rank] = event.failure

    def check(self, now: float) -> None:
        """Raise when the ranks cannot go on.

        Raises:
            Agreed: all raised the same, and can be used again.
            WorkerError: anything else.
        """
        if self.dead is not None:
            raise self._death(self.dead)
        if not self.failures:
            return
        for rank, failure in self.failures.items():
            if failure.memory:
                raise self._error(rank, "ran out of memory", f"{_line(failure.message)}; {MEMORY_HINT}", failure)
        first = next(iter(self.failures.values()))
        if len(self.failures) == self.world and all(first.alike(other) for other in self.failures.values()):
            error = self.failures[0].exception()
            if error is not None and all(failure.usable for failure in self.failures.values()):
                raise Agreed(error)
        if self.quiet and now - self.failed_at < GRACE_SECONDS:
            return
        if self.quiet and all(failure.follows for failure in self.failures.values()):
            return  # who is to blame is quiet: see `stuck`
        blamed = next((rank for rank, failure in self.failures.items() if not failure.follows), None)
        rank = next(iter(self.failures)) if blamed is None else blamed
        failure = self.failures[rank]
        raise self._error(rank, f"raised {failure.kind}", _line(failure.message), failure)

    def stuck(self, now: float) -> bool:
        """Whether nothing happens any more, though no rank says why."""
        if any(not failure.follows for failure in self.failures.values()):
            return False  # `check` knows who is to blame
        gave_up = bool(self.failures) and now - self.failed_at >= GRACE_SECONDS
        return gave_up or (self.timeout is not None and now - self.moved > self.timeout)

    def stuck_error(self, stacks: dict[int, Stack]) -> WorkerError:
        """The error for ranks that are stuck, of which `stacks` are where they stand.

        To blame is who does not answer, or else who computes while others wait, or else rank 0.
        """
        quiet = self.quiet or list(range(self.world))
        silent = [rank for rank in quiet if rank not in stacks]
        computing = [rank for rank in quiet if rank in stacks and not stacks[rank].waiting]
        rank = (silent or computing or quiet)[0]
        waits = [f"rank {other} waits in {stack.waiting}" for other, stack in stacks.items()
                 if stack.waiting and other != rank]  # fmt: skip
        where = "its process answers nothing" if rank in silent else f"it is in {stacks[rank].place}"
        held = f"made no progress for dist_timeout={self.timeout:g} s" if self.timeout else "keeps the others waiting"
        message = "; ".join([where, *waits])
        text = stacks[rank].text if rank in stacks else ""
        return WorkerError(rank, self._headline(rank, held, message), text)

    def _death(self, died: Died) -> WorkerError:
        known = self.failures.get(died.rank)
        text = known.traceback if known else died.traceback
        return WorkerError(died.rank, self._headline(died.rank, died.how, died.hint), text)

    def _error(self, rank: int, what: str, detail: str, failure: Failure) -> WorkerError:
        return WorkerError(rank, self._headline(rank, what, detail), failure.traceback)

    def _headline(self, rank: int, what: str, detail: str) -> str:
        return f"rank {rank} of {self.world} {what} {self.doing}".rstrip() + (f": {detail}" if detail else "")


def _pickled(error: BaseException) -> bytes | None:
    """The bytes of `error`, if it can be made of them again."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # an exception of a user's may fail in any way
        return None
    return data


def _line(message: str) -> str:
    """The first line of `message`."""
    lines = message.strip().splitlines()
    return lines[0] if lines else "no message"
