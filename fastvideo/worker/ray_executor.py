"""The executor of Ray: one actor for each rank, on one machine or several. Ray is imported when one is made."""

import logging
import os
import pickle
import time
import weakref
from typing import Any

import torch

from fastvideo import envs
from fastvideo.logger import init_logger
from fastvideo.utils import require
from fastvideo.worker.executor import WorkerError
from fastvideo.worker.rank import Plan, Threads
from fastvideo.worker.ray_worker import CONTROL, GROUPS, WORK, Outcome, RayWorker
from fastvideo.worker.supervised import Crew, Made, SupervisedExecutor
from fastvideo.worker.tally import MEMORY_HINT, Died, Event, Failed, Finished, Reported, Stack

logger = init_logger(__name__)

PLACEMENT_SECONDS = 300.0
"""For a cluster to have room, which may have to grow first."""
PATIENCE_SECONDS = 5.0
"""After which the log says what it waits for."""
ALIVE_SECONDS = 5.0
"""For Ray to say that an actor is dead."""


def import_ray() -> Any:
    """The module.

    Raises:
        ImportError: it is not installed; says how to.
    """
    try:
        import ray
        import ray.util
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ImportError(
            f"distributed_executor_backend='ray': Ray cannot be imported ({error}); pip install 'fastvideo[ray]', or "
            "leave it out to run on this machine"
        ) from None
    return ray


class RayExecutor(SupervisedExecutor):
    """Runs batches on actors of the Ray cluster that this program is connected to, or else can find, or else starts."""

    def __init__(self, plan: Plan) -> None:
        """Start and load; raises as `SupervisedExecutor`.

        Raises:
            ImportError: Ray is not installed.
            ValueError: the cluster has not as many devices.
        """
        ray = import_ray()
        self._leave = weakref.finalize(self, _leave, _join(ray), ray)
        try:
            super().__init__(lambda: RayCrew(ray, plan), plan.args.dist_timeout)
        except BaseException:
            self._leave()
            raise

    def shutdown(self) -> None:
        """End the actors, and Ray if it was started for them; waits for a batch that is running."""
        super().shutdown()
        self._leave()


_users: list[None] = []
"""One entry for each executor that uses a Ray which an executor started."""


def _join(ray: Any) -> bool:
    """Connect to Ray unless this program is; whether an executor started it."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level=logging.WARNING)
    elif not _users:
        return False
    _users.append(None)
    return True


def _leave(ours: bool, ray: Any) -> None:
    """Disconnect when no executor needs the Ray that one started; it ends then, if it ran for this program alone."""
    if ours:
        _users.pop()
        if not _users and ray.is_initialized():
            ray.shutdown()


class RayCrew(Crew):
    """Actors in a placement group. See `Crew`."""

    def __init__(self, ray: Any, plan: Plan) -> None:
        """Begin to start them.

        Raises:
            ValueError: the cluster has no room for them.
            WorkerError: one died as soon as it was there.
        """
        self.world = plan.layout.world
        self._ray = ray
        self._number = 0
        self._told = 0
        self._news: Any = None
        self._calls: dict[Any, int] = {}
        self._actors: list[Any] = []
        self._group = _placement_group(ray, plan)
        self._end = weakref.finalize(self, _end, ray, self._actors, self._group, os.getpid())
        try:
            _await_placement(ray, self._group, plan)
            self._start(plan)
        except BaseException:
            self.close()
            raise

    def _start(self, plan: Plan) -> None:
        ray = self._ray
        options: dict[str, Any] = {"num_gpus": 1} if plan.device_type == "cuda" else {"num_cpus": 1}
        if variables := envs.own_variables():
            options["runtime_env"] = {"env_vars": variables}
        actor_class = ray.remote(concurrency_groups=GROUPS)(RayWorker)
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        for index in range(self.world):
            place = strategy(self._group, placement_group_bundle_index=index)
            self._actors.append(actor_class.options(scheduling_strategy=place, **options).remote())
        hosts = [self._got(rank, actor.host.remote()) for rank, actor in enumerate(self._actors)]
        # ranks that talk most have numbers next to each other, so a host's ranks have too
        order = sorted(range(self.world), key=lambda index: hosts.index(hosts[index]))
        self._actors[:] = [self._actors[index] for index in order]
        meeting_point = self._got(0, self._actors[0].open_store.remote())
        threads = Threads(torch.get_num_threads(), envs.omp_num_threads_is_set())
        data = ray.put(pickle.dumps((meeting_point, threads, plan)))
        for rank, actor in enumerate(self._actors):
            neighbours = hosts.count(hosts[order[rank]])
            self._call(rank, actor.start, rank, neighbours, data)

    def send(self, request: bytes) -> None:
        self._number += 1
        self._told = 0
        self._news = None
        data = self._ray.put(request)
        for rank, actor in enumerate(self._actors):
            self._call(rank, actor.run, self._number, data)

    def send_together(self, requests: bytes) -> None:
        raise NotImplementedError("several ranks run one request at a time")

    def adapt(self, loras: bytes) -> None:
        data = self._ray.put(loras)
        for rank, actor in enumerate(self._actors):
            self._call(rank, actor.adapt, data)

    def cancel(self, which: int | None = None) -> None:
        self._actors[0].cancel.options(concurrency_group=CONTROL).remote(self._number)

    def poll(self, seconds: float) -> list[Event]:
        if self._news is None and self._number:
            self._news = self._actors[0].news.options(concurrency_group=CONTROL).remote(self._number, self._told)
        waited = [*self._calls, *([self._news] if self._news is not None else [])]
        if not waited:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(waited, timeout=seconds)
        events: list[Event] = []
        for ref in ready:
            if ref in self._calls:
                events += self._outcome(self._calls.pop(ref), ref)
            else:
                self._news = None
                events += self._reports(ref)
        return events

    def stacks(self, seconds: float) -> dict[int, Stack]:
        calls = [actor.stack.options(concurrency_group=CONTROL).remote() for actor in self._actors]
        ready, _ = self._ray.wait(calls, num_returns=self.world, timeout=seconds)
        found = {calls.index(ref): self._value(ref) for ref in ready}
        return {rank: stack for rank, stack in found.items() if stack is not None}

    def alive(self) -> bool:
        calls = [actor.host.options(concurrency_group=CONTROL).remote() for actor in self._actors]
        ready, _ = self._ray.wait(calls, num_returns=self.world, timeout=ALIVE_SECONDS)
        return all(self._value(ref) is not None for ref in ready)  # who is slow to answer is alive

    def close(self) -> None:
        self._end()

    def _call(self, rank: int, method: Any, *args: object) -> None:
        self._calls[method.options(concurrency_group=WORK).remote(*args)] = rank

    def _outcome(self, rank: int, ref: Any) -> list[Event]:
        """What the end of a call of `rank` says."""
        try:
            outcome: Outcome = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            return [_death(self._ray, rank, error)]
        events: list[Event] = [Reported(progress) for progress in outcome.reports[self._told :]]
        if rank == 0:
            self._told, self._news = len(outcome.reports), None  # news on its way is told with this
        if outcome.failure is not None:
            return [*events, Failed(rank, outcome.failure)]
        if outcome.video is None:
            return [*events, Finished(rank, outcome.value)]
        # what Ray holds is read-only, and goes when nobody refers to it
        video = torch.from_numpy(outcome.video.copy())
        made = Made(video, outcome.stage_times, outcome.peak_memory, outcome.block_runs)
        return [*events, Finished(rank, made)]

    def _reports(self, ref: Any) -> list[Event]:
        reports = self._value(ref) or []
        self._told += len(reports)
        return [Reported(progress) for progress in reports]

    def _value(self, ref: Any) -> Any:
        """What a call gave; None when its actor is dead."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError:
            return None

    def _got(self, rank: int, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            died = _death(self._ray, rank, error)
            what = f"rank {rank} of {self.world} {died.how} while it started: {died.hint}"
            raise WorkerError(rank, what, died.traceback) from None


def _placement_group(ray: Any, plan: Plan) -> Any:
    """A bundle for each rank, on as few hosts as can be."""
    kind = _resource(plan)
    bundle = {"CPU": 1.0} if kind == "CPU" else {"CPU": 1.0, "GPU": 1.0}
    return ray.util.placement_group([bundle] * plan.layout.world, strategy="PACK")


def _await_placement(ray: Any, group: Any, plan: Plan) -> None:
    """Wait for room.

    Raises:
        ValueError: there is none.
    """
    if group.wait(PATIENCE_SECONDS):
        return
    kind, world = _resource(plan), plan.layout.world
    message = f"the Ray cluster has {ray.cluster_resources().get(kind, 0):g} {kind}s, and other programs may use some"
    logger.warning("waiting %g s for %d: %s", PLACEMENT_SECONDS, world, message)
    room = group.wait(PLACEMENT_SECONDS)
    require(room, "num_gpus", world, message, "use fewer, or add machines")


def _resource(plan: Plan) -> str:
    return "GPU" if plan.device_type == "cuda" else "CPU"


def _death(ray: Any, rank: int, error: Exception) -> Died:
    """What Ray says of an actor that is gone."""
    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return Died(rank, "was killed by Ray, as memory ran out", MEMORY_HINT, text)
    _, _, detail = text.partition("Worker exit detail: ")
    reason = (detail or text).strip().splitlines()[0].partition(" Some common causes")[0].rstrip(".")
    return Died(rank, "died", f"{reason}; perhaps memory ran out; {MEMORY_HINT}", text)


def _end(ray: Any, actors: list[Any], group: Any, owner: int) -> None:
    """End `actors` and give back their place, unless Ray is gone or this process is a fork of theirs."""
    if os.getpid() != owner or not ray.is_initialized():
        return
    try:
        for actor in actors:
            ray.kill(actor)
        ray.util.remove_placement_group(group)
    except Exception as error:  # the cluster is going down as well; what it raises then depends on how
        logger.warning("Ray did not end the actors: %s", error)
    actors.clear()
