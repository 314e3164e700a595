"""What one rank does, whatever started its process: join the others, load its part, run batches with them."""

import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import ModelEntry
from fastvideo.distributed.groups import Group, build_groups
from fastvideo.distributed.layout import Layout
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import hide_prompts
from fastvideo.models.loader.lora import LoraSet
from fastvideo.models.loader.repo import Repo
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase, Ended
from fastvideo.pipelines.pipeline_batch_info import CancelToken, Control, ForwardBatch, Progress, no_report
from fastvideo.platforms import current_platform
from fastvideo.utils import require, resolve
from fastvideo.worker.in_process import told

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""What ranks talk with, by device."""
MEETING_TIMEOUT = timedelta(minutes=5)
"""For all ranks to be there; an import can take long on a busy machine."""
SLACK_SECONDS = 10.0
"""How much longer than whoever watches it a rank waits for another: the watcher knows better who is to blame."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every rank needs to know, the same for all."""

    repo: Repo
    entry: ModelEntry
    args: FastVideoArgs
    pipeline_config: PipelineConfig
    layout: Layout
    niceness: int = 0
    """What is added to that of a process that computes on a CPU, so that its parent goes first."""
    hide_prompts: bool = False
    """Whether no log may hold the text of a prompt."""

    @property
    def device_type(self) -> str:
        """Of every rank."""
        return current_platform(self.args.device).device_type


@dataclass(frozen=True)
class Threads:
    """What a program wants of torch's threads on the CPU."""

    most: int
    """As many it uses itself."""
    fixed: bool
    """Whether its user chose them for every process."""

    def share(self, cores: int, processes: int) -> int:
        """The threads of each of `processes` on a host with `cores`."""
        return self.most if self.fixed else min(self.most, max(1, cores // processes))


class AgreedCancel(CancelToken):
    """Cancelled on all ranks at the same check, once one of them is asked. All check equally often."""

    def __init__(self, asked: Callable[[], bool], control: Group) -> None:
        """`asked` says whether this rank is asked to stop; `control` are all ranks."""
        super().__init__()
        self._asked = asked
        self._control = control

    @property
    def cancelled(self) -> bool:
        asked = torch.tensor([self._cancelled or self._asked()], dtype=torch.int32)
        return bool(self._control.all_reduce(asked).item())


class Rank:
    """One rank's part of a pipeline."""

    def __init__(self, plan: Plan, *, rank: int, local_rank: int, store: dist.Store | None = None) -> None:
        """Join the group of all ranks and load.

        Args:
            plan: the same on all ranks.
            rank: this one's number.
            local_rank: the number of its device on this host.
            store: where the ranks meet; None is where the environment says, or the group that there is.

        Raises:
            ValueError: as `from_repo` of the pipeline, or the device cannot be used by several processes.
        """
        if plan.hide_prompts:
            hide_prompts()
        if plan.niceness and plan.device_type == "cpu":
            os.nice(plan.niceness)
        self._platform = current_platform(plan.args.device)
        device_type = self._platform.device_type
        if device_type == "cuda":
            there = torch.cuda.device_count()
            require(local_rank < there, "num_gpus", plan.layout.world, f"a host has {there} and more ranks",
                    "start fewer there")  # fmt: skip
            torch.cuda.set_device(local_rank)
        if not dist.is_initialized():
            _join(plan, rank, local_rank, store)
        self.groups = build_groups(plan.layout, device_type)
        pipeline_class: type[ComposedPipelineBase] = resolve(plan.entry.pipeline)
        self._pipeline = pipeline_class.from_repo(
            plan.repo, plan.args, plan.pipeline_config, self.groups, progress=rank == 0
        )
        self.attention_backend = self._pipeline.attention_backend

    def run(
        self, batch: ForwardBatch, cancelled: Callable[[], bool], report: Callable[[Progress], None]
    ) -> ForwardBatch:
        """`batch` run together with all other ranks, which give the same request.

        Args:
            batch: the request.
            cancelled: whether this rank is asked to stop; then all stop together.
            report: is told the progress on rank 0, and nothing on others.

        Returns:
            The batch, with the video on rank 0, and the peak memory of the rank where it is largest.
        """
        self._platform.reset_peak_memory()
        control = self.groups.control
        listener = report if self.groups.rank == 0 else no_report
        agreed = Control(
            cancel=AgreedCancel(cancelled, control), report=listener, preview_every=batch.control.preview_every
        )
        given = batch.control
        batch = self._pipeline.forward(dataclasses.replace(batch, control=agreed))
        batch.control = given  # the other would keep the group of all ranks alive
        self._platform.synchronize()
        if self.groups.rank > 0:
            batch.video = None  # it has no frames
        batch.peak_memory = int(control.all_gather(torch.tensor([self._platform.peak_memory()])).max())
        return batch

    def run_together(
        self,
        batches: Sequence[ForwardBatch],
        cancelled: Callable[[int], bool],
        report: Callable[[int, Progress], None],
        ended: Ended,
    ) -> None:
        """`batches` run together, where this rank is the only one.

        Args:
            batches: alike.
            cancelled: whether the one of that number is asked to stop.
            report: is told the progress of the one of that number.
            ended: see `Executor.execute_together`.
        """
        self._platform.reset_peak_memory()
        controlled = [
            dataclasses.replace(batch, control=Control(
                cancel=AgreedCancel(partial(cancelled, number), self.groups.control), report=partial(report, number),
                preview_every=batch.control.preview_every,
            ))
            for number, batch in enumerate(batches)
        ]  # fmt: skip
        self._pipeline.forward_together(controlled, partial(told, self._platform, ended))

    def adapt(self, loras: LoraSet) -> None:
        """Have this rank's part of the pipeline run with `loras`; talks to no other rank."""
        self._pipeline.adapt(loras)


def _join(plan: Plan, rank: int, local_rank: int, store: dist.Store | None) -> None:
    """Make the process group of all ranks."""
    device_type, world, seconds = plan.device_type, plan.layout.world, plan.args.dist_timeout
    options: dict[str, Any] = {}
    if seconds is not None:
        options["timeout"] = timedelta(seconds=seconds + (0 if store is None else SLACK_SECONDS))
    if device_type == "cuda":
        options["device_id"] = torch.device("cuda", local_rank)
    if store is None:
        dist.init_process_group(BACKENDS[device_type], **options)
        return
    # the timeout of the group is for ranks that compute, not for those that still start
    store.set(f"fastvideo/{rank}", "")
    store.wait([f"fastvideo/{other}" for other in range(world)], MEETING_TIMEOUT)
    dist.init_process_group(BACKENDS[device_type], store=store, rank=rank, world_size=world, **options)


def open_store(address: str) -> tuple[dist.TCPStore, int]:
    """A store where ranks meet that listens on `address` alone, and its port, which the system chose."""
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    store = dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    return store, port


def quieten(rank: int) -> None:
    """Let the log of a rank other than the first show warnings alone, with its number; all of it when debugging."""
    logger = logging.getLogger("fastvideo")
    if rank == 0:
        return
    if logger.level == logging.INFO:
        logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        handler.setFormatter(logging.Formatter(f"%(levelname)s rank {rank}: %(message)s"))
