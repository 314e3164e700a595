"""One worker process of `multiprocess`: listens to its parent, and does what it is told.

Only the standard library is imported before the listener runs, which ends the process when the parent is gone.
"""

import faulthandler
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import traceback
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
    from fastvideo.worker.rank import Rank
    from fastvideo.worker.tally import Stack

# messages to a worker: (START, order), (RUN, number, request), (TOGETHER, number, requests), (ADAPT, loras), (STACK,),
# (CANCEL, number, which), where `which` of several is None for all
START, RUN, TOGETHER, ADAPT, CANCEL, STACK = "start", "run", "together", "adapt", "cancel", "stack"
# messages from it: (REPORT, Progress), (DONE, value), (VIDEO, result) and a file, (ERROR, Failure), (STACK, Stack); of
# several requests (REPORT_OF, (which, Progress)), (VIDEO_OF, (which, result)) and a file, (ERROR_OF, (which, Failure))
REPORT, DONE, VIDEO, ERROR = "report", "done", "video", "error"
REPORT_OF, VIDEO_OF, ERROR_OF = "report of", "video of", "error of"


class Link:
    """The pipe to the parent, and the thread that listens to it."""

    def __init__(self, connection: Connection) -> None:
        self.jobs: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        """What to do, in order."""
        self._cancelled: set[tuple[int, int | None]] = set()
        self._connection = connection
        self._sending = threading.Lock()
        self._main = threading.get_ident()
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def send(self, kind: str, value: object, file: int | None = None) -> None:
        """Tell the parent; `file` is a descriptor that goes along, which it gets as one of its own."""
        with self._sending:
            try:
                self._connection.send((kind, value))
                if file is not None:
                    with socket.socket(fileno=os.dup(self._connection.fileno())) as pipe:
                        socket.send_fds(pipe, [b"f"], [file])
            except BrokenPipeError:
                os._exit(0)

    def cancelled(self, number: int, which: int | None = None) -> bool:
        """Whether the request, or `which` of several, was cancelled."""
        return (number, None) in self._cancelled or (number, which) in self._cancelled

    def _listen(self) -> None:
        try:
            self._obey()
        except BaseException:
            traceback.print_exc()
        os._exit(1)  # without this thread nobody would notice that the parent is gone

    def _obey(self) -> None:
        watched: list[Connection | int] = [self._connection, *_parent()]
        while True:
            if self._connection not in wait(watched):
                os._exit(0)
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)
            if message[0] == CANCEL:
                self._cancelled = {one for one in self._cancelled if one[0] == message[1]} | {message[1:]}
            elif message[0] == STACK:
                self.send(STACK, _stack_of(self._main))
            else:
                self.jobs.put(message)


def _parent() -> list[int]:
    """What becomes readable when the parent ends, where the system has it.

    A pipe alone does not tell: whoever the parent forked holds its end too.
    """
    try:
        return [os.pidfd_open(os.getppid())]
    except (AttributeError, OSError):
        return []


def _stack_of(thread: int) -> "Stack":
    """Where `thread` of this process stands."""
    from fastvideo.worker.tally import Stack

    return Stack.of(traceback.extract_stack(sys._current_frames()[thread]))


def serve(connection: Connection, rank: int, crash: int) -> None:
    """Work for the parent at the other end of `connection` until it is gone.

    Args:
        connection: a pipe in both directions.
        rank: of this process.
        crash: the file that gets the stacks of all threads, should the interpreter crash.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    faulthandler.enable(crash)
    link = Link(connection)
    worker: Rank | None = None
    while True:
        kind, *order = link.jobs.get()
        try:
            if kind == START:
                worker = _start(link, rank, order[0])
            elif kind == ADAPT:
                assert worker is not None
                worker.adapt(pickle.loads(order[0]))
                link.send(DONE, None)
            else:
                assert worker is not None
                (_run if kind == RUN else _run_together)(link, worker, *order)
        except BaseException as error:
            from fastvideo.worker.tally import Failure

            link.send(ERROR, Failure.of(error))


def _start(link: Link, rank: int, order: bytes) -> "Rank":
    """Load the pipeline."""
    import torch
    import torch.distributed as dist

    from fastvideo.worker.rank import Rank, quieten

    port, threads, plan = pickle.loads(order)
    quieten(rank)
    torch.set_num_threads(threads.share(torch.get_num_threads(), plan.layout.world))
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    worker = Rank(plan, rank=rank, local_rank=rank, store=store)
    link.send(DONE, (worker.attention_backend, torch.get_num_threads()))
    return worker


def _run(link: Link, worker: "Rank", number: int, request: bytes) -> None:
    """Run request `number`, and send what rank 0 made of it."""
    from fastvideo.worker import shared

    batch = worker.run(
        pickle.loads(request), lambda: link.cancelled(number), lambda progress: link.send(REPORT, progress)
    )
    if worker.groups.rank > 0:
        link.send(DONE, None)
        return
    assert batch.video is not None
    with shared.stored(batch.video) as (file, layout):
        link.send(VIDEO, (layout, batch.stage_times, batch.peak_memory, batch.block_runs), file)


def _run_together(link: Link, worker: "Rank", number: int, requests: bytes) -> None:
    """Run the requests of order `number`, and send what became of each as soon as that is known."""
    from fastvideo.worker import shared
    from fastvideo.worker.tally import Failure

    def ended(which: int, outcome: "ForwardBatch | Exception") -> None:
        if isinstance(outcome, Exception):
            link.send(ERROR_OF, (which, Failure.of(outcome)))
            return
        assert outcome.video is not None
        with shared.stored(outcome.video) as (file, layout):
            made = (outcome.stage_times, outcome.peak_memory, outcome.block_runs, outcome.together)
            link.send(VIDEO_OF, (which, layout, *made), file)
        outcome.video = None

    worker.run_together(
        pickle.loads(requests), lambda which: link.cancelled(number, which),
        lambda which, progress: link.send(REPORT_OF, (which, progress)), ended,
    )  # fmt: skip
    link.send(DONE, None)
