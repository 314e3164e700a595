"""One rank as an actor of Ray."""

import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from fastvideo.pipelines.pipeline_batch_info import BlockRuns, Progress
from fastvideo.worker.rank import Rank, open_store, quieten
from fastvideo.worker.supervised import Loaded
from fastvideo.worker.tally import Failure, Stack

WORK, CONTROL = "work", "control"
GROUPS = {WORK: 1, CONTROL: 3}
"""Threads of an actor: one that computes, and some that answer meanwhile."""
NEWS_SECONDS = 1.0
"""For which `news` waits for some."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended."""

    failure: Failure | None = None
    value: Loaded | None = None
    video: npt.NDArray[np.float32] | None = None
    """Of rank 0; an array, as Ray keeps those in its shared memory."""
    stage_times: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    block_runs: BlockRuns | None = None
    reports: list[Progress] = field(default_factory=list)
    """All progress of the request."""


class RayWorker:
    """`start`, `run` and `adapt` are called in the one thread of `WORK`, all else in `CONTROL`."""

    def __init__(self) -> None:
        self._rank: Rank | None = None
        self._store: dist.TCPStore | None = None
        self._cancelled = 0
        self._working = threading.get_ident()
        self._changed = threading.Condition()
        self._number = 0
        self._reports: list[Progress] = []

    def host(self) -> str:
        """The host's name for Ray."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def open_store(self) -> tuple[str, int]:
        """Open the store where the ranks meet; its address, which other hosts can reach."""
        import ray

        address = ray.util.get_node_ip_address()
        self._store, port = open_store(address)
        return address, port

    def start(self, rank: int, neighbours: int, order: bytes) -> Outcome:
        """Load the pipeline of `rank`, which shares its host with so many others, itself counted."""
        return self._caught(lambda: self._start(rank, neighbours, order))

    def run(self, number: int, request: bytes) -> Outcome:
        """Run request `number`."""
        return self._caught(lambda: self._run(number, request))

    def adapt(self, loras: bytes) -> Outcome:
        """Run with `loras` from now on."""
        return self._caught(lambda: self._adapt(loras))

    def news(self, number: int, told: int) -> list[Progress]:
        """The progress of request `number` after the first `told` reports, as soon as there is some."""
        with self._changed:
            self._changed.wait_for(lambda: self._number == number and len(self._reports) > told, NEWS_SECONDS)
            return self._reports[told:] if self._number == number else []

    def cancel(self, number: int) -> None:
        """Stop request `number` at its next step."""
        self._cancelled = number

    def stack(self) -> Stack:
        """Where the thread that computes stands."""
        frame = sys._current_frames().get(self._working)
        return Stack("", "no call", "") if frame is None else Stack.of(traceback.extract_stack(frame))

    def _caught(self, work: Callable[[], Outcome]) -> Outcome:
        self._working = threading.get_ident()
        try:
            return work()
        except BaseException as error:
            return Outcome(failure=Failure.of(error), reports=self._reports)

    def _start(self, rank: int, neighbours: int, order: bytes) -> Outcome:
        (host, port), threads, plan = pickle.loads(order)
        quieten(rank)
        # Ray sets OMP_NUM_THREADS for its workers, so torch does not say how many cores there are
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        torch.set_num_threads(threads.share(cores, neighbours))
        store = self._store or dist.TCPStore(host, port, is_master=False)
        self._rank = Rank(plan, rank=rank, local_rank=0, store=store)
        return Outcome(value=Loaded(self._rank.attention_backend, torch.get_num_threads()))

    def _adapt(self, loras: bytes) -> Outcome:
        assert self._rank is not None
        self._rank.adapt(pickle.loads(loras))
        return Outcome()

    def _run(self, number: int, request: bytes) -> Outcome:
        assert self._rank is not None
        with self._changed:
            self._number, self._reports = number, []

        def report(progress: Progress) -> None:
            with self._changed:
                self._reports.append(progress)
                self._changed.notify_all()

        batch = self._rank.run(pickle.loads(request), lambda: self._cancelled == number, report)
        if batch.video is None:
            return Outcome()
        return Outcome(
            video=batch.video.numpy(),
            stage_times=batch.stage_times,
            peak_memory=batch.peak_memory,
            block_runs=batch.block_runs,
            reports=self._reports,
        )
