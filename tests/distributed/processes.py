"""Some processes that run functions together, started once: a process takes seconds to import torch."""

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

TIMEOUT = 120


def _serve(rank: int, size: int, port: int, connection: Connection) -> None:
    """Run what comes through `connection` until it closes."""
    import torch
    import torch.distributed as dist

    from fastvideo.distributed.layout import Layout

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    stay = {dist.group.WORLD}
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            os._exit(0)
        try:
            connection.send((True, function(*args)))
        except BaseException as error:
            connection.send((False, f"rank {rank}: {error!r}\n{traceback.format_exc()}"))
        # of meshes that are alike, PyTorch goes on with the first that weights were sharded over
        if any(isinstance(arg, Layout) and arg.fsdp for arg in args):
            stay.update(dist.distributed_c10d._world.pg_map)
        _end_groups(stay)


def _end_groups(stay: set[Any]) -> None:
    """End all groups but those that shall `stay`, which functions make for themselves: each has threads that wake a
    hundred times a second, and hundreds of groups take all there is of a processor."""
    import torch.distributed as dist

    for group in [one for one in dist.distributed_c10d._world.pg_map if one not in stay]:
        dist.destroy_process_group(group)
    gc.collect()  # what made them may still hold them
    gc.freeze()


class Processes:
    """`size` processes with a gloo group over all of them."""

    def __init__(self, size: int) -> None:
        from fastvideo.worker.multiprocess import LOCALHOST
        from fastvideo.worker.rank import open_store

        self.size = size
        self._store, port = open_store(LOCALHOST)
        context = multiprocessing.get_context("spawn")
        self._workers = []
        self._connections: list[Connection] = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(rank, size, port, theirs), daemon=True)
            worker.start()
            theirs.close()
            self._workers.append(worker)
            self._connections.append(ours)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What `function(*args)`, of a module that can be imported, returns on each rank.

        Raises:
            AssertionError: it raised on a rank, or took more than `TIMEOUT` s.
        """
        for connection in self._connections:
            connection.send((function, args))
        results: dict[int, Any] = {}
        failures: list[str] = []
        while len(results) < self.size:
            pending = {c: rank for rank, c in enumerate(self._connections) if rank not in results}
            ready = wait(list(pending), TIMEOUT)
            assert ready, f"ranks {sorted(pending.values())} take more than {TIMEOUT} s"
            for connection in ready:
                assert isinstance(connection, Connection)
                done, value = connection.recv()
                if not done:
                    failures.append(value)
                results[pending[connection]] = value
        assert not failures, "\n".join(failures)
        return [results[rank] for rank in range(self.size)]

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()
            worker.join()
