"""Which executor runs a model: this process, several, those of Ray, or those of `torchrun`."""

import dataclasses

import torch

from fastvideo import envs
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import ModelEntry
from fastvideo.distributed.layout import Layout
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import prompts_hidden
from fastvideo.models.loader.repo import Repo, weight_sources
from fastvideo.utils import require
from fastvideo.worker.executor import Executor
from fastvideo.worker.in_process import InProcessExecutor
from fastvideo.worker.multiprocess import MultiProcessExecutor
from fastvideo.worker.rank import BACKENDS, Plan
from fastvideo.worker.ray_executor import RayExecutor
from fastvideo.worker.torchrun import TorchrunExecutor

NICENESS = 10
"""Of a process that computes apart: this one's threads are short, and go first."""


def start_executor(
    repo: Repo, entry: ModelEntry, args: FastVideoArgs, pipeline_config: PipelineConfig, layout: Layout,
    apart: bool = False,
) -> Executor:  # fmt: skip
    """An executor that has loaded `repo`.

    Args:
        repo: a resolved repo.
        entry: its entry in the registry.
        args: checked.
        pipeline_config: checked.
        layout: over devices; as many processes compute.
        apart: on one device, compute in a process of its own too, so that Python in this one never waits. Where that
            cannot be, here: on a device of one process, and for a model that streams, whose chunks are handed on here.

    Raises:
        ValueError: as `from_repo` of the pipeline, or there are not as many devices or processes.
        WorkerError: a process that computes failed by itself.
        ImportError: Ray is asked for and not installed.
    """
    plan = Plan(repo=repo, entry=entry, args=args, pipeline_config=pipeline_config, layout=layout,
                hide_prompts=prompts_hidden())  # fmt: skip
    world, launched, backend = layout.world, envs.torchrun(), args.distributed_executor_backend
    if launched is not None:
        count = launched.world_size
        require(world == count, "num_gpus", world, f"torchrun started {count} processes", f"use num_gpus={count}")
        require(backend == "mp", "distributed_executor_backend", backend, "torchrun starts the processes here",
                "leave it out, or start the program without torchrun")  # fmt: skip
    device = plan.device_type
    if world == 1:
        if not apart or launched is not None or device not in BACKENDS or entry.streams:
            return InProcessExecutor(repo, entry, args, pipeline_config)
        fetch_weights(repo)
        return MultiProcessExecutor(dataclasses.replace(plan, niceness=NICENESS))
    require(device in BACKENDS, "num_gpus", world, f"device {device!r} runs in one process",
            "use num_gpus=1, or device='cpu'")  # fmt: skip
    if launched is not None:
        return TorchrunExecutor(plan, launched)
    if backend == "ray":
        return RayExecutor(plan)
    there = torch.cuda.device_count() if device == "cuda" else world
    require(there >= world, "num_gpus", world, f"this machine has {there}",
            f"use num_gpus={there}, or several machines with torchrun or Ray")  # fmt: skip
    fetch_weights(repo)
    return MultiProcessExecutor(plan)


def fetch_weights(repo: Repo) -> None:
    """Have all weight files here: a download is this process's, not that of every rank at once."""
    for source in weight_sources(repo):
        source.files.fetch(source.weight_names())
