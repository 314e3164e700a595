"""The executor of several processes of this machine, one for each rank; this process holds no weights."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO

import torch
import torch.distributed as dist

from fastvideo import envs
from fastvideo.logger import init_logger
from fastvideo.worker import shared
from fastvideo.worker.process import (
    ADAPT,
    CANCEL,
    DONE,
    ERROR,
    ERROR_OF,
    REPORT,
    REPORT_OF,
    RUN,
    STACK,
    START,
    TOGETHER,
    VIDEO,
    VIDEO_OF,
)
from fastvideo.worker.rank import Plan, Threads, open_store
from fastvideo.worker.supervised import Crew, Loaded, Made, SupervisedExecutor
from fastvideo.worker.tally import MEMORY_HINT, Died, Event, Failed, Finished, OneEnded, Reported, Stack

logger = init_logger(__name__)

BOOT = """
import sys
sys.path[:] = [path for path in sys.path if path]
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from fastvideo.worker.process import serve
serve(connection, int(sys.argv[2]), int(sys.argv[3]))
"""
"""What a worker runs. It is a new interpreter which knows nothing of the program that started it: `multiprocessing`
would import that program's main module, and so run a script again that has no `if __name__ == "__main__"`."""

LOCALHOST = "127.0.0.1"
"""Where the workers meet: only this machine can reach it."""
END_SECONDS = 2.0
"""For workers to end by themselves when their pipe closes."""


class MultiProcessExecutor(SupervisedExecutor):
    """Runs batches on processes of this machine."""

    def __init__(self, plan: Plan) -> None:
        """Start and load; raises as `SupervisedExecutor`."""
        super().__init__(lambda: ProcessCrew(plan), plan.args.dist_timeout)


@dataclass
class _Worker:
    """One process, as its parent has it."""

    rank: int
    process: subprocess.Popen[bytes]
    connection: Connection
    crash: IO[bytes]
    """Where it writes its stacks when the interpreter crashes."""
    gone: bool = False
    """Whether its death was reported."""


class ProcessCrew(Crew):
    """Worker processes. See `Crew`. They end when this object does, and when this process does, however that may be."""

    def __init__(self, plan: Plan) -> None:
        """Begin to start them."""
        self.world = plan.layout.world
        self._number = 0
        self._workers: list[_Worker] = []
        store, port = open_store(LOCALHOST)
        self._end = weakref.finalize(self, _end, self._workers, [store], os.getpid())
        try:
            for rank in range(self.world):
                self._workers.append(_start(rank))
            threads = Threads(torch.get_num_threads(), envs.omp_num_threads_is_set())
            self._tell(START, pickle.dumps((port, threads, plan)))
        except BaseException:
            self.close()
            raise

    def send(self, request: bytes) -> None:
        self._number += 1
        self._tell(RUN, self._number, request)

    def adapt(self, loras: bytes) -> None:
        self._tell(ADAPT, loras)

    def send_together(self, requests: bytes) -> None:
        self._number += 1
        self._tell(TOGETHER, self._number, requests)

    def cancel(self, which: int | None = None) -> None:
        self._tell(CANCEL, self._number, which)

    def alive(self) -> bool:
        return all(worker.process.poll() is None for worker in self._workers)

    def poll(self, seconds: float) -> list[Event]:
        there = {worker.connection: worker for worker in self._workers if not worker.gone}
        events: list[Event] = []
        for connection in wait(list(there), seconds):
            assert isinstance(connection, Connection)
            events += self._received(there[connection])
        for worker in self._workers:
            # the pipe alone does not tell: whoever a worker forked holds its end too
            if not worker.gone and worker.process.poll() is not None:
                while not worker.gone:
                    events += self._received(worker)
        return events

    def stacks(self, seconds: float) -> dict[int, Stack]:
        self._tell(STACK)
        found: dict[int, Stack] = {}
        until = time.monotonic() + seconds
        waiting = {worker.connection: worker for worker in self._workers if not worker.gone}
        while waiting and (left := until - time.monotonic()) > 0:
            for connection in wait(list(waiting), left):
                assert isinstance(connection, Connection)
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    del waiting[connection]
                    continue
                if kind == STACK:
                    found[waiting.pop(connection).rank] = value
        return found

    def close(self) -> None:
        self._end()

    def _tell(self, *message: object) -> None:
        data = pickle.dumps(message)
        for worker in self._workers:
            try:
                worker.connection.send_bytes(data)
            except OSError:
                continue  # it is dead, which `poll` will see

    def _received(self, worker: _Worker) -> list[Event]:
        """What the next message of `worker` says, or its end."""
        rank = worker.rank
        try:
            if worker.process.poll() is not None and not worker.connection.poll():
                raise EOFError
            kind, value = worker.connection.recv()
            if kind == REPORT:
                return [Reported(value)]
            if kind == REPORT_OF:
                return [Reported(value[1], value[0])]
            if kind == ERROR:
                return [Failed(rank, value)]
            if kind == ERROR_OF:
                return [OneEnded(*value)]
            if kind == VIDEO_OF:
                which, layout, *rest = value
                return [OneEnded(which, Made(shared.load(_file_from(worker.connection), layout), *rest))]
            if kind == VIDEO:
                layout, *rest = value
                return [Finished(rank, Made(shared.load(_file_from(worker.connection), layout), *rest))]
            assert kind == DONE, kind
            return [Finished(rank, value if value is None else Loaded(*value))]
        except (EOFError, OSError):
            worker.gone = True
            return [_death(worker)]


def _start(rank: int) -> _Worker:
    """Start a process that waits for orders."""
    ours, theirs = Pipe()
    crash = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
    files = theirs.fileno(), crash.fileno()
    with theirs, _without_interrupts():
        process = subprocess.Popen(
            [sys.executable, "-c", BOOT, str(files[0]), str(rank), str(files[1]), "fastvideo-worker"],
            pass_fds=files,
            stdin=subprocess.DEVNULL,
            env=envs.worker_environment(),
        )
    ours.send(sys.path)
    return _Worker(rank, process, ours, crash)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process started within is deaf to Ctrl-C until it decides about it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _file_from(connection: Connection) -> int:
    """The descriptor that follows a message."""
    with socket.socket(fileno=os.dup(connection.fileno())) as pipe:
        _, files, _, _ = socket.recv_fds(pipe, 1, 1)
    if not files:
        raise EOFError
    return files[0]


def _death(worker: _Worker) -> Died:
    """What there is to say of a worker whose pipe has closed."""
    worker.crash.seek(0)
    stacks = worker.crash.read().decode(errors="replace")
    try:
        code = worker.process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return Died(worker.rank, "closed its pipe, and its process lives on")
    if code >= 0:
        return Died(worker.rank, f"ended with exit code {code}", traceback=stacks)
    hint = f"perhaps memory ran out; {MEMORY_HINT}" if -code == signal.SIGKILL else ""
    return Died(worker.rank, f"was killed by {signal.Signals(-code).name}", hint, stacks)


def _end(workers: list[_Worker], stores: list[dist.TCPStore], owner: int) -> None:
    """End `workers` and what they met at, unless this process is a fork of their parent."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.connection.close()
    until = time.monotonic() + END_SECONDS
    for worker in workers:
        try:
            worker.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            try:
                worker.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:  # it is in a call of the system that never returns
                logger.warning("process %d of rank %d was killed and does not end", worker.process.pid, worker.rank)
        worker.crash.close()
    workers.clear()
    stores.clear()
