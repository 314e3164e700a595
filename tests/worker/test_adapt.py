"""LoRAs on several processes: all take them on, or none does, and workers that are started anew have them too."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from fastvideo.worker.executor import WorkerError
from fastvideo.worker.multiprocess import MultiProcessExecutor, ProcessCrew
from tests.pipelines.stand_ins import make_batch
from tests.worker.acting import acting_loras, acting_plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux has them")


@pytest.fixture(scope="module")
def executor() -> Iterator[MultiProcessExecutor]:
    """Two processes."""
    made = MultiProcessExecutor(acting_plan())
    yield made
    made.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        made.adapt(acting_loras("a"))


def strength(executor: MultiProcessExecutor) -> float:
    """Of the LoRAs that a request runs with."""
    video = executor.execute(make_batch(num_inference_steps=2)).video
    assert video is not None
    return float(video[0, 0, 0, 0, 4])


def test_all_or_none(executor: MultiProcessExecutor) -> None:
    executor.adapt(acting_loras("a", "b"))
    assert strength(executor) == 0.5
    with pytest.raises(ValueError, match="height=7: must be a multiple of 16"):
        executor.adapt(acting_loras("all: refuse in adapt"))
    assert strength(executor) == 0.5
    with pytest.raises(WorkerError, match="rank 1 of 2 raised ValueError while it took on a LoRA: height=7"):
        executor.adapt(acting_loras("rank 1: refuse in adapt"))
    assert strength(executor) == 0.5, "workers that are started anew take on what was set last"
    crew = executor._crew
    assert isinstance(crew, ProcessCrew)
    os.kill(crew._workers[1].process.pid, signal.SIGKILL)
    crew._workers[1].process.wait()
    executor.adapt(acting_loras("c"))
    assert strength(executor) == 0.25
    executor.adapt(acting_loras())
    assert strength(executor) == 0
