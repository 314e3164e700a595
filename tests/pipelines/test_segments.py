"""A video in segments: how it is cut, what each segment is given, and how it comes together."""

from typing import Any

import pytest
import torch

from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.pipelines.pipeline_batch_info import (
    BlockRuns,
    Cancelled,
    CancelToken,
    Control,
    ForwardBatch,
    MediaInputs,
)
from fastvideo.pipelines.stages import LatentPreparationStage, PipelineStage, SegmentsStage
from tests.pipelines.stand_ins import ARGS, make_batch


def clip(frames: int) -> torch.Tensor:
    """Frame n has the value n everywhere."""
    return torch.arange(frames, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)


@pytest.mark.parametrize(
    ("frames", "start", "stop", "expected"),
    [
        (5, 0, 10, [0, 1, 2, 3, 4, 3, 2, 1, 0, 1]),
        (5, 4, 7, [4, 3, 2]),
        (2, 0, 5, [0, 1, 0, 1, 0]),
        (1, 0, 3, [0, 0, 0]),
    ],
)
def test_clips_go_back_and_forth(frames: int, start: int, stop: int, expected: list[int]) -> None:
    media = MediaInputs(image=clip(1)[0], pose_video=clip(frames)).between(start, stop)
    assert media.names == ("image", "pose_video")
    assert media.pose_video is not None
    assert media.pose_video[:, 0, 0, 0].tolist() == expected


class Counting(PipelineStage):
    """Frames that go on from the last of the segment before, a fifth of a level each; notes what it is given."""

    name = "counting"
    reads = ("before", "latents", "prompt_embeds")
    writes = ("video", "block_runs")

    def __init__(self) -> None:
        self.given: list[ForwardBatch] = []

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        self.given.append(batch)
        first = 0.0 if batch.before is None else float(batch.before[0, 0, 0, 0, 0] + 1) / 2
        frames = first + torch.arange(batch.sampling.num_frames) / 100
        batch.video = frames.view(1, 1, -1, 1, 1).expand(1, 3, -1, 2, 2)
        batch.block_runs = BlockRuns(3, 1)
        return batch


def segments(length: int, overlap: int) -> tuple[SegmentsStage, Counting]:
    """The stage, and the one in it."""
    counting = Counting()
    noise = LatentPreparationStage(lambda sampling: (1, sampling.num_frames, 1, 1))
    return SegmentsStage((noise, counting), lambda sampling: (length, overlap)), counting


@pytest.mark.parametrize(
    ("frames", "length", "overlap", "count"),
    [(9, 9, 1, 1), (9, 5, 1, 2), (10, 5, 1, 3), (3, 9, 1, 1), (1, 9, 5, 1), (14, 9, 5, 3), (13, 9, 0, 2)],
)
def test_frames_follow_each_other(frames: int, length: int, overlap: int, count: int) -> None:
    stage, counting = segments(length, overlap)
    batch = make_batch(num_frames=frames)
    batch = stage.forward(batch, ARGS)
    assert len(counting.given) == count
    assert batch.video is not None
    seen = [round(100 * float(value)) for value in batch.video[0, 0, :, 0, 0]]
    # without an overlap nothing says where to go on
    assert seen == ([n % length for n in range(frames)] if not overlap else list(range(frames)))
    assert batch.block_runs == (3 * count, count)
    assert batch.sampling.num_frames == frames


def test_a_segment_is_a_request_of_its_own() -> None:
    stage, counting = segments(5, 1)
    assert stage.reads == ("prompt_embeds",)
    batch = make_batch(num_frames=9, seed=3)
    batch.media = MediaInputs(pose_video=clip(9))
    stage.forward(batch, ARGS)
    first, second = counting.given
    assert [part.sampling.num_frames for part in counting.given] == [5, 5]
    assert second.media.pose_video is not None
    assert second.media.pose_video[:, 0, 0, 0].tolist() == [4, 5, 6, 7, 8]
    # noise goes on where it stopped
    draws = torch.Generator().manual_seed(3)
    for part in (first, second):
        assert torch.equal(part.latents, torch.randn(1, 1, 5, 1, 1, generator=draws))
    assert batch.stage_times["counting"] > 0


def test_it_is_cancelled_between_segments() -> None:
    token, stage = CancelToken(), segments(5, 1)[0]

    def report(progress: Any) -> None:
        if (progress.stage, progress.step) == ("segments", 1):
            token.cancel()

    with pytest.raises(Cancelled):
        stage.forward(make_batch(num_frames=9, control=Control(cancel=token, report=report)), ARGS)
