"""Several requests at a time on a process of their own. The pipeline is an acting one, so they run one by one there."""

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from fastvideo.distributed.layout import Layout
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken, Control, Progress
from fastvideo.worker.executor import Executor, WorkerError
from fastvideo.worker.multiprocess import MultiProcessExecutor
from tests.pipelines.stand_ins import make_batch
from tests.worker.acting import STAGES, acting_plan

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes")


@pytest.fixture(scope="module")
def alone() -> Iterator[MultiProcessExecutor]:
    """One process."""
    made = MultiProcessExecutor(acting_plan(Layout()))
    yield made
    made.shutdown()


def works(executor: Executor) -> bool:
    """Whether it makes a video."""
    return executor.execute(make_batch(num_inference_steps=2)).video is not None


def test_each_has_its_own_end_and_progress(alone: MultiProcessExecutor) -> None:
    seen: list[tuple[int, str, int]] = []
    tokens = [CancelToken() for _ in range(3)]

    def report(which: int, progress: Progress) -> None:
        seen.append((which, progress.stage, progress.step))
        if (which, progress.stage) == (1, "denoising"):
            tokens[1].cancel()

    batches = [
        make_batch(num_inference_steps=30, seed=which,
                   control=Control(cancel=tokens[which], report=partial(report, which)))
        for which in range(3)
    ]  # fmt: skip
    ended: list[tuple[int, Any]] = []
    alone.execute_together(batches, lambda which, outcome: ended.append((which, outcome)))
    assert [which for which, _ in ended] == [0, 1, 2]
    assert isinstance(ended[1][1], Cancelled)
    for which in (0, 2):
        made = ended[which][1]
        assert made is batches[which]
        assert made.video[0, 0, 0, 0, 2] == which
        assert set(made.stage_times) == set(STAGES)
        assert (made.together, made.peak_memory > 0) == (1, True)
        assert (which, "decoding", 1) in seen
    assert works(alone)


def test_what_is_cancelled_once_is_not_the_next_time(alone: MultiProcessExecutor) -> None:
    token = CancelToken()
    token.cancel()
    ended: dict[int, Any] = {}
    alone.execute_together([make_batch(control=Control(cancel=token)), make_batch()], ended.__setitem__)
    assert isinstance(ended[0], Cancelled)
    assert ended[1].video is not None
    alone.execute_together([make_batch(), make_batch()], ended.__setitem__)
    assert ended[0].video is not None


@pytest.mark.parametrize("what", ["refuse", "die"])
def test_what_ends_all(alone: MultiProcessExecutor, what: str) -> None:
    ended: dict[int, Any] = {}
    batches = [make_batch(["kite"]), make_batch([f"all: {what} in decoding"]), make_batch(["cat"])]
    with pytest.raises(ValueError if what == "refuse" else WorkerError):
        alone.execute_together(batches, ended.__setitem__)
    assert list(ended) == [0], "what was done by then is there"
    assert works(alone)


def test_an_error_of_a_listener_is_the_callers(alone: MultiProcessExecutor) -> None:
    def ended(which: int, outcome: object) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        alone.execute_together([make_batch(), make_batch()], ended)
    assert works(alone)
