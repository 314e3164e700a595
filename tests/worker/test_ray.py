"""Ray, on a cluster of two hosts that this machine plays."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastvideo import VideoGenerator
from fastvideo.distributed.layout import Layout
from fastvideo.pipelines.pipeline_batch_info import Cancelled, Control, Progress
from fastvideo.worker.executor import WorkerError
from fastvideo.worker.ray_executor import RayCrew, RayExecutor
from tests.pipelines.stand_ins import make_batch
from tests.worker.acting import STAGES, acting_loras, acting_plan
from tests.worker.leftovers import wait_for_end

pytestmark = [pytest.mark.distributed, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    """Ray tells nobody that it is used, and its workers get their share of a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="module")
def cluster(settings: None) -> Iterator[Any]:
    """Two hosts of one processor each, with this process connected."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield ray
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def executor(cluster: Any) -> Iterator[RayExecutor]:
    """Two actors."""
    made = RayExecutor(acting_plan(distributed_executor_backend="ray"))
    yield made
    workers = processes(made) if made._crew else []
    made.shutdown()
    made.shutdown()
    assert wait_for_end(workers, 10) == []
    assert cluster.is_initialized(), "who found a Ray leaves it"
    until = time.monotonic() + 10
    while cluster.available_resources().get("CPU") != 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert cluster.available_resources()["CPU"] == 2, "the placement group is gone"
    with pytest.raises(RuntimeError, match="shut down"):
        made.execute(make_batch())


def processes(executor: RayExecutor) -> list[int]:
    """Those of the actors, by rank."""
    crew = executor._crew
    assert isinstance(crew, RayCrew)
    return [crew._ray.get(actor.__ray_call__.remote(lambda worker: os.getpid())) for actor in crew._actors]


def works(executor: RayExecutor) -> bool:
    """Whether it makes a video."""
    batch = executor.execute(make_batch(num_inference_steps=2))
    return batch.video is not None and batch.video.shape == (1, 3, 5, 16, 32)


def test_a_lora(executor: RayExecutor) -> None:
    def strength() -> float:
        video = executor.execute(make_batch(num_inference_steps=2)).video
        assert video is not None
        return float(video[0, 0, 0, 0, 4])

    executor.adapt(acting_loras("a", "b"))
    assert strength() == 0.5
    with pytest.raises(ValueError, match="height=7: must be a multiple of 16"):
        executor.adapt(acting_loras("all: refuse in adapt"))
    with pytest.raises(WorkerError, match="rank 1 of 2 raised ValueError"):
        executor.adapt(acting_loras("rank 1: refuse in adapt"))
    assert strength() == 0.5, "workers that are started anew take on what was set last"
    executor.adapt(acting_loras())
    assert strength() == 0


class TestRequests:
    def test_a_video_of_two_hosts(self, executor: RayExecutor) -> None:
        seen: list[Progress] = []
        batch = executor.execute(make_batch(num_inference_steps=3, seed=7, control=Control(report=seen.append)))
        assert batch.video is not None
        assert batch.video[0, 0, 0, 0, 2] == 7
        batch.video += 1
        steps = {stage: 3 if stage == "denoising" else 1 for stage in STAGES}
        expected = [(stage, step, total) for stage, total in steps.items() for step in range(total + 1)]
        assert [(progress.stage, progress.step, progress.total) for progress in seen] == expected
        assert tuple(batch.stage_times) == STAGES
        assert batch.peak_memory > 2**20
        assert executor.attention_backend == "none"
        assert executor.threads >= 1
        crew = executor._crew
        assert isinstance(crew, RayCrew)
        assert len({crew._ray.get(actor.host.remote()) for actor in crew._actors}) == 2

    def test_stops_of_all_ranks(self, executor: RayExecutor) -> None:
        before = processes(executor)
        with pytest.raises(ValueError, match=r"^height=7: must be a multiple of 16; try 16$"):
            executor.execute(make_batch(["all: refuse in latents"]))
        control = Control()
        timer = threading.Timer(0.5, control.cancel.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            executor.execute(make_batch(num_inference_steps=10_000, control=control))

        def report(progress: Progress) -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            executor.execute(make_batch(num_inference_steps=10_000, control=Control(report=report)))
        assert works(executor)
        assert processes(executor) == before


class TestFailures:
    def broken(self, executor: RayExecutor, prompt: str) -> WorkerError:
        """The error that ends the request, within 10 seconds of the last progress; the actors are gone."""
        assert works(executor)
        workers, seen = processes(executor), [time.monotonic()]
        control = Control(report=lambda progress: seen.append(time.monotonic()))
        with pytest.raises(WorkerError) as caught:
            executor.execute(make_batch([prompt], num_inference_steps=2, control=control))
        assert time.monotonic() - seen[-1] < 10
        assert wait_for_end(workers, 10) == []
        return caught.value

    def test_killed(self, executor: RayExecutor) -> None:
        error = self.broken(executor, "rank 1: die in denoising")
        assert error.rank == 1
        assert str(error).startswith("rank 1 of 2 died during denoising")
        assert str(error).endswith("; perhaps memory ran out; use a smaller size, a lower precision, or more devices")

    def test_raises_alone(self, executor: RayExecutor) -> None:
        error = self.broken(executor, "rank 1: refuse in latents")
        assert str(error) == "rank 1 of 2 raised ValueError during latents: height=7: must be a multiple of 16; try 16"
        assert "in act\n" in error.traceback

    def test_hangs(self, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(executor, "_timeout", 3.0)
        error = self.broken(executor, "rank 1: sleep in denoising")
        assert str(error).startswith("rank 1 of 2 made no progress for dist_timeout=3 s during denoising, 2 of 2 done")
        assert str(error).endswith("; rank 0 waits in control.all_reduce")
        assert "time.sleep(600)" in error.traceback

    def test_refused_while_it_loads(self, executor: RayExecutor) -> None:
        assert works(executor)
        executor._drop()
        with pytest.raises(ValueError, match=r"^height=7: must be a multiple of 16; try 16$"):
            RayExecutor(acting_plan(model="all: refuse in loading", distributed_executor_backend="ray"))

    def test_no_room(self, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fastvideo.worker.ray_executor.PATIENCE_SECONDS", 0.5)
        monkeypatch.setattr("fastvideo.worker.ray_executor.PLACEMENT_SECONDS", 0.5)
        with pytest.raises(ValueError, match="num_gpus=4: the Ray cluster has 2 CPUs"):
            RayExecutor(acting_plan(Layout(ulysses=4), distributed_executor_backend="ray"))


def test_a_model_on_two_hosts_makes_what_one_process_makes(executor: RayExecutor, wan_repo: Path) -> None:
    executor._drop()
    small: dict[str, Any] = {
        "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2, "save_video": False,
        "return_frames": True,
    }  # fmt: skip
    options: dict[str, Any] = {"precision": "fp32", "device": "cpu"}
    with VideoGenerator.from_pretrained(wan_repo, **options) as generator:
        expected = generator.generate_video("a red cat", **small)
    options |= {"num_gpus": 2, "distributed_executor_backend": "ray"}
    with VideoGenerator.from_pretrained(wan_repo, **options) as generator:
        made = generator.generate_video("a red cat", **small)
    assert not isinstance(made, list)
    assert not isinstance(expected, list)
    assert (made.samples - expected.samples).abs().max() < 1 / 255


def test_dies_with_nothing_to_do(executor: RayExecutor) -> None:
    assert works(executor)
    workers = processes(executor)
    os.kill(workers[0], 9)
    wait_for_end(workers[:1], 5)
    time.sleep(1)
    assert works(executor)
