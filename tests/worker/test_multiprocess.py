"""Several processes: what they make, and what happens when one of them fails. The pipeline is an acting one."""

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.distributed.layout import Layout
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken, Control, Progress
from fastvideo.worker import multiprocess
from fastvideo.worker.executor import Executor, WorkerError
from fastvideo.worker.multiprocess import MultiProcessExecutor, ProcessCrew
from fastvideo.worker.rank import open_store
from tests.pipelines.stand_ins import make_batch
from tests.worker.acting import STAGES, acting_plan
from tests.worker.leftovers import Traces, alive, children_of, seconds_of, wait_for_end

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module", autouse=True)
def first_store() -> None:
    """What the first store of a process opens, a pipe of libuv's, stays for the next."""
    open_store(multiprocess.LOCALHOST)
    gc.collect()


@pytest.fixture(scope="module")
def executor() -> Iterator[MultiProcessExecutor]:
    """Two processes; they start again after each test in which one fails."""
    before = Traces.now()
    made = MultiProcessExecutor(acting_plan())
    yield made
    made.shutdown()
    made.shutdown()
    assert before.added() == []
    with pytest.raises(RuntimeError, match="shut down"):
        made.execute(make_batch())


def processes(executor: MultiProcessExecutor) -> list[int]:
    """Those of the workers, by rank."""
    crew = executor._crew
    assert isinstance(crew, ProcessCrew)
    return [worker.process.pid for worker in crew._workers]


def works(executor: Executor) -> bool:
    """Whether it makes a video."""
    batch = executor.execute(make_batch(num_inference_steps=2))
    return batch.video is not None and batch.video.shape == (1, 3, 5, 16, 32)


def broken(executor: MultiProcessExecutor, prompt: str) -> tuple[WorkerError, float]:
    """The error that ends the request, and how many seconds after the last progress it came; nothing is left."""
    works(executor)
    workers, seen = processes(executor), [time.monotonic()]
    control = Control(report=lambda progress: seen.append(time.monotonic()))
    with pytest.raises(WorkerError) as caught:
        executor.execute(make_batch([prompt], num_inference_steps=2, control=control))
    seconds = time.monotonic() - seen[-1]
    assert not any(map(alive, workers))
    assert not children_of(os.getpid()) & set(workers)
    return caught.value, seconds


class TestRequests:
    def test_several_at_a_time_go_one_after_the_other(self, executor: MultiProcessExecutor) -> None:
        token = CancelToken()
        token.cancel()
        ended: dict[int, Any] = {}
        executor.execute_together([make_batch(control=Control(cancel=token)), make_batch()], ended.__setitem__)
        assert isinstance(ended[0], Cancelled)
        assert ended[1].video is not None

    def test_a_video(self, executor: MultiProcessExecutor) -> None:
        batch = make_batch(num_inference_steps=2, num_videos_per_prompt=2, seed=7)
        before = Traces.now()
        result = executor.execute(batch)
        assert result is batch
        assert result.video is not None
        assert result.video.shape == (2, 3, 5, 16, 32)
        made_by = [process % 1000 for process in (processes(executor)[0], os.getpid())]
        assert result.video[0, 0, 0, 0, :4].tolist() == [*made_by, 7, 0.5]
        result.video += 1
        assert tuple(result.stage_times) == STAGES
        assert result.peak_memory > 2**20
        assert executor.attention_backend == "none"
        assert executor.threads >= 1
        del result
        batch.video = None
        assert before.added() == []

    def test_progress_is_told_once_in_order(self, executor: MultiProcessExecutor) -> None:
        seen: list[Progress] = []
        executor.execute(make_batch(num_inference_steps=3, control=Control(report=seen.append)))
        steps = {stage: 3 if stage == "denoising" else 1 for stage in STAGES}
        expected = [(stage, step, total) for stage, total in steps.items() for step in range(total + 1)]
        assert [(progress.stage, progress.step, progress.total) for progress in seen] == expected

    def test_a_second_thread_waits(self, executor: MultiProcessExecutor) -> None:
        made = {}
        threads = [
            threading.Thread(target=lambda seed=seed: made.update({seed: executor.execute(make_batch(seed=seed))}))
            for seed in (1, 2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert {seed: batch.video[0, 0, 0, 0, 2].item() for seed, batch in made.items()} == {1: 1, 2: 2}

    def test_idle_workers_use_no_processor(self, executor: MultiProcessExecutor) -> None:
        works(executor)
        time.sleep(0.2)
        used = [seconds_of(process) for process in processes(executor)]
        time.sleep(1)
        assert [seconds_of(process) for process in processes(executor)] == pytest.approx(used, abs=0.03)

    def test_nothing_listens_beyond_this_machine(self, executor: MultiProcessExecutor) -> None:
        listening = {line for line in Traces.now().ports if not line.startswith("0100007F:")}
        assert not listening


class TestStops:
    """All ranks end alike, and the same processes serve the next request."""

    @pytest.fixture(autouse=True)
    def same_workers(self, executor: MultiProcessExecutor) -> Iterator[None]:
        """The workers are those of before."""
        assert works(executor)
        before = processes(executor)
        yield
        assert works(executor)
        assert processes(executor) == before

    def test_an_error_of_all_ranks(self, executor: MultiProcessExecutor) -> None:
        with pytest.raises(ValueError, match=r"^height=7: must be a multiple of 16; try 16$") as caught:
            executor.execute(make_batch(["all: refuse in latents"]))
        assert "acting.py" in str(caught.value.__cause__)

    def test_cancelled_at_a_step(self, executor: MultiProcessExecutor) -> None:
        seen: list[Progress] = []
        control = Control(report=seen.append)
        timer = threading.Timer(0.3, control.cancel.cancel)
        timer.start()
        with pytest.raises(Cancelled, match="the request was cancelled"):
            executor.execute(make_batch(num_inference_steps=10_000, control=control))
        assert seen[-1].stage == "denoising"
        assert 0 < seen[-1].step < 5000

    def test_cancelled_before_it_began(self, executor: MultiProcessExecutor) -> None:
        control = Control()
        control.cancel.cancel()
        with pytest.raises(Cancelled):
            executor.execute(make_batch(num_inference_steps=10_000, control=control))

    def test_an_error_in_the_listener_is_the_callers(self, executor: MultiProcessExecutor) -> None:
        def report(progress: Progress) -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            executor.execute(make_batch(num_inference_steps=10_000, control=Control(report=report)))


class TestFailures:
    """One rank fails by itself: the error says which and how within 10 seconds, and all are gone."""

    def test_dies_with_nothing_to_do(self, executor: MultiProcessExecutor) -> None:
        works(executor)
        workers = processes(executor)
        assert isinstance(executor._crew, ProcessCrew)
        executor._crew._workers[1].process.kill()
        executor._crew._workers[1].process.wait(10)
        assert works(executor)
        assert not any(map(alive, workers))

    @pytest.mark.parametrize(("number", "stage"), list(enumerate(STAGES)))
    def test_killed_in_each_stage(self, executor: MultiProcessExecutor, number: int, stage: str) -> None:
        rank = number % 2
        error, seconds = broken(executor, f"rank {rank}: die in {stage}")
        steps = ", 2 of 2 done" if stage == "denoising" else ""
        assert str(error) == (
            f"rank {rank} of 2 was killed by SIGKILL during {stage}{steps}: perhaps memory ran out; use a smaller "
            "size, a lower precision, or more devices"
        )
        assert error.rank == rank
        assert seconds < 5

    def test_raises_alone(self, executor: MultiProcessExecutor) -> None:
        error, seconds = broken(executor, "rank 1: refuse in latents")
        assert str(error) == "rank 1 of 2 raised ValueError during latents: height=7: must be a multiple of 16; try 16"
        assert "in act\n" in error.traceback
        assert seconds < 10

    def test_hangs(self, executor: MultiProcessExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(executor, "_timeout", 2.0)
        error, seconds = broken(executor, "rank 1: sleep in denoising")
        start = "rank 1 of 2 made no progress for dist_timeout=2 s during denoising, 2 of 2 done: it is in act ("
        assert str(error).startswith(start)
        assert str(error).endswith("; rank 0 waits in control.all_reduce")
        assert "time.sleep(600)" in error.traceback
        assert seconds < 10

    @pytest.mark.distributed
    def test_does_not_answer(self, executor: MultiProcessExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(executor, "_timeout", 2.0)
        error, seconds = broken(executor, "rank 0: stop in denoising")
        assert error.rank == 0
        assert "its process answers nothing; rank 1 waits in control.all_reduce" in str(error)
        assert seconds < 10

    @pytest.mark.distributed
    @pytest.mark.parametrize(
        ("prompt", "rank", "message"),
        [
            ("rank 0: crash in latents", 0, "was killed by SIGSEGV during latents"),
            ("rank 1: leave in decoding", 1, "ended with exit code 3 during decoding"),
            ("rank 1: allocate in latents", 1, "ran out of memory during latents: "),
            ("all: own in timesteps", 0, "raised tests.worker.acting.OwnError during timesteps: 1 and 2"),
        ],
    )
    def test_other_ways(self, executor: MultiProcessExecutor, prompt: str, rank: int, message: str) -> None:
        error, seconds = broken(executor, prompt)
        if not prompt.startswith("all"):
            assert error.rank == rank
        assert str(error).startswith(f"rank {error.rank} of 2 {message}")
        assert ("acting.py" in error.traceback) == ("leave" not in prompt)
        assert seconds < 10

    @pytest.mark.distributed
    def test_a_second_ctrl_c_stops_at_once(self, executor: MultiProcessExecutor) -> None:
        def report(progress: Progress) -> None:
            raise KeyboardInterrupt

        works(executor)
        workers = processes(executor)
        with pytest.raises(KeyboardInterrupt):
            executor.execute(make_batch(["rank 1: sleep in latents"], control=Control(report=report)))
        assert not any(map(alive, workers))
        assert works(executor)


class TestLoading:
    def test_what_all_ranks_refuse(self) -> None:
        before = Traces.now()
        with pytest.raises(ValueError, match=r"^height=7: must be a multiple of 16; try 16$"):
            MultiProcessExecutor(acting_plan(model="all: refuse in loading"))
        assert before.added() == []

    @pytest.mark.distributed
    def test_what_one_rank_fails_at(self) -> None:
        before = Traces.now()
        message = "rank 1 of 2 was killed by SIGKILL while it loaded: perhaps memory ran out"
        with pytest.raises(WorkerError, match=message):
            MultiProcessExecutor(acting_plan(model="rank 1: die in loading"))
        with pytest.raises(WorkerError, match="rank 0 of 2 raised ValueError while it loaded: height=7"):
            MultiProcessExecutor(acting_plan(model="rank 0: refuse in loading"))
        assert before.added() == []

    @pytest.mark.distributed
    def test_four_processes_and_their_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        executor = MultiProcessExecutor(acting_plan(Layout(ulysses=2, cfg=2)))
        assert executor.threads == max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // 4))
        assert works(executor)
        workers = processes(executor)
        assert len(workers) == 4
        del executor
        gc.collect()
        assert not any(map(alive, workers))


class TestTheParentsEnd:
    SCRIPT = """
import os, sys
sys.path.insert(0, {root!r})
from tests.worker.acting import acting_plan
from tests.pipelines.stand_ins import make_batch
from fastvideo.worker.multiprocess import MultiProcessExecutor
executor = MultiProcessExecutor(acting_plan())
print(*(worker.process.pid for worker in executor._crew._workers), flush=True)
if os.fork() == 0:
    sys.stdin.read()  # holds what its parent had open, and outlives it
    sys.exit()  # runs what was registered for the end of the program, whose workers these are not
print("forked", flush=True)
if {sleep}:
    executor.execute(make_batch(["rank 1: sleep in latents"]))
"""

    def run(self, sleep: bool) -> tuple[subprocess.Popen[str], list[int]]:
        """A program that starts workers and ends without a word, or waits for them; with their processes."""
        code = self.SCRIPT.format(root=str(ROOT), sleep=sleep)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        program = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)  # type: ignore[call-overload]
        workers = [int(word) for word in program.stdout.readline().split()]
        assert len(workers) == 2
        assert program.stdout.readline() == "forked\n"
        return program, workers

    def test_killed(self) -> None:
        program, workers = self.run(sleep=True)
        time.sleep(0.5)
        assert all(map(alive, workers))
        program.kill()
        assert wait_for_end(workers, 5) == []
        program.communicate()

    @pytest.mark.distributed
    def test_it_ends_and_its_forks_end(self) -> None:
        program, workers = self.run(sleep=True)
        program.stdin.close()
        time.sleep(0.5)
        assert all(map(alive, workers)), "the end of a fork is not the program's"
        program.kill()
        program.wait()
        program, workers = self.run(sleep=False)
        assert wait_for_end(workers, 10) == []
        program.communicate()
        assert program.returncode == 0
