"""A video that is longer than a model makes at once, segment after segment."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.distributed.groups import ONE_RANK, Groups
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.pipelines.pipeline_batch_info import BlockRuns, ForwardBatch, written
from fastvideo.pipelines.stages.base import PipelineStage
from fastvideo.platforms.cpu import return_freed_memory

Cut = Callable[[SamplingParam], tuple[int, int]]
"""The frames of a segment, and how many of them, fewer, are the last ones of the segment before."""


class SegmentsStage(PipelineStage):
    """Runs stages of its own for each segment, which are given a request for so many frames with that part of the
    clips.

    A segment begins with the last frames of the one before, `before`, which are not taken into the video again. Noise
    of all segments is from one generator. Clips go back and forth where they are shorter than the last segment, whose
    end is then cut off.
    """

    name = "segments"
    writes = ("video", "block_runs")

    def __init__(self, stages: Sequence[PipelineStage], cut: Cut) -> None:
        """`stages` make one segment; what they read and do not write, the stages before this one must have written."""
        self.stages = tuple(stages)
        self.cut = cut
        known = {"before"}
        for stage in self.stages:
            self.reads = (*self.reads, *(name for name in stage.reads if name not in {*known, *self.reads}))
            known.update(stage.writes)

    @property
    def groups(self) -> Groups:
        """See `PipelineStage`; its stages run on the same ranks."""
        return self.stages[0].groups if self.stages else ONE_RANK

    @groups.setter
    def groups(self, groups: Groups) -> None:
        for stage in self.stages:
            stage.groups = groups

    def check(self, batch: ForwardBatch) -> None:
        """See `PipelineStage`."""
        for stage in self.stages:
            stage.check(batch)

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        """Make all segments.

        Raises:
            Cancelled: from a stage, or between two segments.
            FloatingPointError: from a stage.
        """
        frames, (length, overlap) = batch.sampling.num_frames, self.cut(batch.sampling)
        # the first has all of its frames new, and each of the others so many fewer
        count = max(1, -(-(frames - overlap) // (length - overlap)))
        made: list[torch.Tensor] = []
        before, generator, runs = None, None, BlockRuns(0, 0)
        for number in batch.control.steps(self.name, range(count), count):
            start = number * (length - overlap)
            part = dataclasses.replace(
                batch,
                sampling=dataclasses.replace(batch.sampling, num_frames=length),
                media=batch.media.between(start, start + length),
                before=before,
                noise_from=generator,
            )
            for stage in self.stages:
                part = self._run(stage, part, args)
            video, (ran, saved) = written(part.video, "video"), written(part.block_runs, "block_runs")
            runs = BlockRuns(runs.made + ran, runs.saved + saved)
            made.append(video[:, :, overlap:] if number else video)
            before, generator = self._last(video, overlap) if overlap else None, part.generator
        batch.video, batch.block_runs = torch.cat(made, dim=2)[:, :, :frames], runs
        return batch

    def _run(self, stage: PipelineStage, part: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        """`part` after `stage`, whose times in all segments are added up."""
        part.control.check()
        started = time.perf_counter()
        try:
            part = stage.forward(part, args)
        finally:
            stage.release()
            return_freed_memory()  # as between stages elsewhere
        times = part.stage_times
        times[stage.name] = times.get(stage.name, 0.0) + time.perf_counter() - started
        return part

    def _last(self, video: torch.Tensor, count: int) -> torch.Tensor:
        """The last `count` frames of `video`, which the first rank alone may have, in [-1, 1] on every rank."""
        last = video[:, :, video.shape[2] - count :]
        if self.groups.rank > 0:
            last = video.new_empty(*video.shape[:2], count, *video.shape[3:])
        return self.groups.control.broadcast(last.contiguous()) * 2 - 1
