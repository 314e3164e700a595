"""The contract of a stage, and the check that the stages of a pipeline connect."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, TypeVar

import torch

from fastvideo.distributed.groups import ONE_RANK, Groups
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.layers.residence import Resident
from fastvideo.pipelines.pipeline_batch_info import REQUEST_FIELDS, ForwardBatch
from fastvideo.utils import nearest

Model = TypeVar("Model", bound=Resident)
FIELDS = tuple(field.name for field in dataclasses.fields(ForwardBatch))


class PipelineStage(ABC):
    """One step of a pipeline. What it needs from the model is handed to its constructor."""

    name: ClassVar[str]
    """Unique in a pipeline; the name in progress reports and stage times."""
    reads: tuple[str, ...] = ()
    """Fields of the batch that earlier stages must have written. The request is always there."""
    writes: ClassVar[tuple[str, ...]] = ()
    """Fields of the batch that this stage sets."""
    groups: Groups = ONE_RANK
    """The ranks that run the stage together; set by the pipeline."""

    _in_use: Resident | None = None

    def check(self, batch: ForwardBatch) -> None:  # noqa: B027 - most stages refuse nothing
        """Refuse a request that this stage cannot run, from the request alone; computes and changes nothing.

        Asks components for their numbers and not for their weights, so that a pipeline without weights can check too.

        Raises:
            ValueError: the field, its value, the rule, and what to do.
        """

    def use(self, model: Model) -> Model:
        """`model` with its weights on the device, until the stage ends or uses another one."""
        if self._in_use is not model:
            self.release()
            self._in_use = model
            model.residence.enter()
        return model

    def release(self) -> None:
        """Let the model that is in use go; whoever runs the stage calls this in the end, however it ended."""
        model, self._in_use = self._in_use, None
        if model is not None:
            model.residence.leave()

    @abstractmethod
    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        """`batch` with the fields in `writes` set, and nothing else changed."""


class StreamingStage(PipelineStage):
    """A last stage that has a video chunk by chunk, each before the next one is computed."""

    @abstractmethod
    def stream(self, batch: ForwardBatch, args: FastVideoArgs) -> Iterator[torch.Tensor]:
        """The video [B, 3, T, H, W] fp32 in [0, 1] on the CPU, in order along T; what else is in `writes` is set in
        the end."""

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        """The same, with the video as a whole; its parts are shown as they come."""
        parts = []
        for part in self.stream(batch, args):
            batch.control.show(part)
            parts.append(part)
        batch.video = torch.cat(parts, dim=2)
        return batch


def check_connected(stages: Sequence[PipelineStage], result: str = "video") -> None:
    """Check that each stage finds what it reads and that `result` is written in the end.

    Raises:
        ValueError: a name that is no field of the batch, a request field that is written, a field that is read
            before it is written, a `result` that nobody writes, or two stages of one name.
    """
    written = dict.fromkeys(REQUEST_FIELDS, "the request")
    seen: set[str] = set()
    for index, stage in enumerate(stages):
        if stage.name in seen:
            raise ValueError(f"stage {stage.name!r} is in the pipeline twice: give one of them another name")
        seen.add(stage.name)
        _check_names(stage)
        for field in stage.reads:
            if field not in written:
                raise ValueError(f"stage {stage.name!r} reads {field!r}, {_who_writes(field, stages[index + 1 :])}")
        written.update(dict.fromkeys(stage.writes, stage.name))
    if result not in written:
        raise ValueError(f"no stage of {', '.join(repr(stage.name) for stage in stages)} writes {result!r}")


def _check_names(stage: PipelineStage) -> None:
    for field in (*stage.reads, *stage.writes):
        if field not in FIELDS:
            raise ValueError(
                f"stage {stage.name!r} declares {field!r}: ForwardBatch has no such field; nearest is "
                f"{nearest(field, FIELDS)!r}"
            )
    for field in stage.writes:
        if field in REQUEST_FIELDS:
            raise ValueError(f"stage {stage.name!r} writes {field!r}: no stage changes the request")


def _who_writes(field: str, later: Sequence[PipelineStage]) -> str:
    writers = [stage.name for stage in later if field in stage.writes]
    if writers:
        return f"which {writers[0]!r} writes after it: move that one before it"
    return "which no stage writes"
