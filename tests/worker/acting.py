"""A pipeline whose prompt says what goes wrong in it: "rank 1: die in denoising".

Without torch models, so that a worker starts as fast as torch is imported.
"""

import ctypes
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import torch

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import ModelEntry
from fastvideo.distributed.groups import ONE_RANK, Groups
from fastvideo.distributed.layout import Layout
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.files import LocalFiles
from fastvideo.models.loader.lora import Adapter, LoraSet
from fastvideo.models.loader.repo import Repo
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.pipelines.stages.base import PipelineStage
from fastvideo.worker.rank import Plan

STAGES = ("text_encoding", "timesteps", "latents", "denoising", "decoding")
ORDER = re.compile(r"(?P<who>rank (?P<rank>\d)|all): (?P<act>\w+) in (?P<stage>\w+)")


class OwnError(Exception):
    """One whose constructor takes other arguments than its message, so it cannot be pickled."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def act(name: str, rank: int) -> None:
    """Do what a prompt asks for."""
    if name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "crash":
        ctypes.string_at(0)
    elif name == "leave":
        os._exit(3)
    elif name == "sleep":
        time.sleep(600)
    elif name == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif name == "refuse":
        raise ValueError("height=7: must be a multiple of 16; try 16")
    elif name == "differ":
        raise ValueError(f"height={rank}: must be a multiple of 16; try 16")
    elif name == "allocate":
        torch.empty(2**60, dtype=torch.uint8)
    elif name == "own":
        raise OwnError(1, 2)
    else:
        raise AssertionError(name)


class ActingStage(PipelineStage):
    """Takes the steps that the request asks for; before the second of them, does what the prompt says."""

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]
        self.writes = ("video",) if name == "decoding" else ()  # type: ignore[misc]

    strength = 0.0
    """Of all LoRAs together."""

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        order = ORDER.fullmatch(batch.prompts[0])
        steps = batch.sampling.num_inference_steps if self.name == "denoising" else 1
        for _ in batch.control.steps(self.name, range(steps), steps):
            time.sleep(0.01)
        if order and order["stage"] == self.name and order["rank"] in (None, str(self.groups.rank)):
            act(order["act"], self.groups.rank)
        if self.name == "decoding":
            sampling, first = batch.sampling, self.groups.rank == 0
            frames = sampling.num_frames if first else 0
            batch.video = torch.full((batch.size, 3, frames, sampling.height, sampling.width), 0.5)
            if first:
                batch.video[0, 0, 0, 0, :3] = torch.tensor([os.getpid() % 1000, os.getppid() % 1000, sampling.seed])
                batch.video[0, 0, 0, 0, 4] = self.strength
        return batch


class ActingPipeline(ComposedPipelineBase):
    """Stages that act. The model's name says what goes wrong while it loads."""

    @classmethod
    def from_repo(  # type: ignore[override]
        cls, repo: Repo, args: FastVideoArgs, pipeline_config: PipelineConfig, groups: Groups = ONE_RANK,
        progress: bool = True,
    ) -> "ActingPipeline":  # fmt: skip
        order = ORDER.fullmatch(repo.model)
        if order and order["rank"] in (None, str(groups.rank)):
            act(order["act"], groups.rank)
        return cls({}, args, pipeline_config, groups)

    def adapt(self, loras: LoraSet) -> None:
        for adapter, _ in loras.adapters:
            order = ORDER.fullmatch(adapter.nickname)
            if order and order["rank"] in (None, str(self.stages[0].groups.rank)):
                act(order["act"], self.stages[0].groups.rank)
        for stage in self.stages:
            stage.strength = sum(strength for _, strength in loras.adapters)  # type: ignore[attr-defined]

    def create_stages(self) -> tuple[PipelineStage, ...]:
        return tuple(ActingStage(name) for name in STAGES)


def acting_loras(*nicknames: str) -> LoraSet:
    """Some of strength 0.25 whose nicknames say what goes wrong when they are taken on: "all: refuse in adapt"."""
    made = (Adapter(nickname=name, path=name, files=(), hashes={}, changes={}, applied=1) for name in nicknames)
    return LoraSet(tuple((adapter, 0.25) for adapter in made))


ENTRY = ModelEntry(
    name="acting",
    description="for tests",
    pipeline_class="Acting",
    pipeline="tests.worker.acting:ActingPipeline",
    pipeline_config="fastvideo.configs.pipelines.base:PipelineConfig",
    sampling="fastvideo.configs.sample:SamplingParam",
)


def acting_plan(layout: Layout | None = None, model: str = "acting", **args: Any) -> Plan:
    """The plan of an acting pipeline on two ranks."""
    layout = layout or Layout(ulysses=2)
    files = LocalFiles(Path("/nowhere"), frozenset())
    return Plan(
        repo=Repo(model=model, entry=ENTRY, model_index={}, components={}, files=files),
        entry=ENTRY,
        args=FastVideoArgs(model=model, device="cpu", num_gpus=layout.world, **args),
        pipeline_config=PipelineConfig(),
        layout=layout,
    )
