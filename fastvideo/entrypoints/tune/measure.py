"""Clips of a model with and without the ways to be faster: how far they are from the exact ones, and what they save."""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.models.dits.base import BaseDiT
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import BlockRuns, ForwardBatch, written
from fastvideo.platforms import current_platform

DEGREE = 4
"""Of TeaCache's polynomial, as in arXiv 2411.19108."""
MOST_DB = 99.0
"""The PSNR of equal videos, which would be infinite."""

Fields = dict[str, Any]
"""Of `SamplingParam`."""


@dataclass(frozen=True)
class Clip:
    """An exact clip."""

    prompt: str
    seed: int
    video: torch.Tensor
    """[1, 3, T, H, W] in [0, 1]."""
    step: float = math.inf
    """Seconds of a denoising step."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What some fields cost and save on some clips."""

    fields: Fields
    psnr: tuple[float, ...]
    """Of each clip's video to the exact one, in dB."""
    saved: float
    """Share of the block runs, the mean."""
    step: float = math.inf
    """Seconds of a denoising step, the least of the clips: others were slowed down by something else."""

    @property
    def mean(self) -> float:
        return sum(self.psnr) / len(self.psnr)

    @property
    def lowest(self) -> float:
        return min(self.psnr)

    def to_json(self) -> dict[str, Any]:
        """For the file, with what matters of the digits."""
        return {
            "fields": self.fields, "mean": round(self.mean, 2), "lowest": round(self.lowest, 2),
            "saved": round(self.saved, 4), "clips": len(self.psnr),
        }  # fmt: skip


class Bench:
    """A loaded pipeline, and the request that is measured."""

    def __init__(self, pipeline: ComposedPipelineBase, sampling: SamplingParam) -> None:
        self.pipeline = pipeline
        self.sampling = sampling
        self.alone = current_platform(pipeline.args.device).device_type == "cpu" and torch.get_num_threads() == 1
        """Whether the time of the one thread that computes can be told from that of other programs."""

    def make(self, prompt: str, seed: int, fields: Fields) -> tuple[torch.Tensor, BlockRuns, float]:
        """The video [1, 3, T, H, W] in [0, 1], its block runs, and seconds of a denoising step."""
        sampling = dataclasses.replace(self.sampling, seed=seed, **fields)
        negative = sampling.negative_prompt
        started, busy = time.perf_counter(), time.process_time()
        batch = self.pipeline.forward(ForwardBatch(prompts=[prompt], negative_prompts=[negative], sampling=sampling))
        step = batch.stage_times["denoising"] / sampling.num_inference_steps
        if self.alone:
            step *= min(1.0, (time.process_time() - busy) / (time.perf_counter() - started))
        return written(batch.video, "video"), written(batch.block_runs, "block_runs"), step

    def exact(self, prompt: str, seed: int) -> Clip:
        """The clip to compare with."""
        video, _, step = self.make(prompt, seed, {})
        return Clip(prompt, seed, video, step)

    def measure(self, fields: Fields, clips: Sequence[Clip], floor: float = -math.inf) -> Point:
        """What `fields` do to `clips`; after two of them only while none is below `floor` dB, where nobody wants it."""
        found: list[float] = []
        shares: list[float] = []
        steps: list[float] = []
        for clip in clips:
            if len(found) > 1 and min(found) < floor:
                break
            video, runs, step = self.make(clip.prompt, clip.seed, fields)
            found.append(psnr(video, clip.video))
            shares.append(runs.saved / sum(runs))
            steps.append(step)
        return Point(fields=fields, psnr=tuple(found), saved=sum(shares) / len(shares), step=min(steps))


def psnr(video: torch.Tensor, exact: torch.Tensor) -> float:
    """Peak signal to noise ratio of two videos in [0, 1], in dB."""
    error = float((video - exact).square().mean())
    return MOST_DB if error == 0 else min(MOST_DB, -10 * math.log10(error))


class Recorder:
    """Watches exact clips being made: how what the blocks add changes from step to step, and with it the timestep.

    Use it as a context manager around them.
    """

    def __init__(self, pipeline: ComposedPipelineBase, passes: int, steps: int) -> None:
        """`passes` of `steps` steps each, which take turns."""
        models = [component for component in pipeline.components.values() if isinstance(component, BaseDiT)]
        self._models = models
        self._passes, self._steps = passes, steps
        self._calls = 0
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._start: torch.Tensor | None = None
        self._ratios: list[list[float]] = [[] for _ in range(steps)]
        self._changes: list[tuple[float, float]] = []

    def __enter__(self) -> "Recorder":
        self._handles = []
        for model in self._models:
            self._handles.append(model.blocks[0].register_forward_pre_hook(self._enter))
            self._handles.append(
                model.blocks[-1].register_forward_hook(
                    lambda block, inputs, output, model=model: self._leave(model, inputs, output)
                )
            )
        return self

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()

    def coefficients(self) -> dict[str, list[float]]:
        """The polynomial of TeaCache, and the ratios of MagCache (arXiv 2506.09045, equation 5)."""
        ratios = [sum(seen) / len(seen) if seen else 1.0 for seen in self._ratios]
        inputs, outputs = np.array(self._changes).T
        degree = min(DEGREE, len(set(inputs.round(9))) - 1)
        polynomial = np.polyfit(inputs, outputs, degree)
        return {"teacache": [float(f"{c:.8g}") for c in polynomial], "magcache": [round(ratio, 5) for ratio in ratios]}

    def _enter(self, block: object, inputs: tuple[Any, ...]) -> None:
        self._start = inputs[0]

    def _leave(self, model: BaseDiT[Any], inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        residual = (output - written(self._start, "start")).float()
        signal = getattr(inputs[1], model.timestep_input).float()
        kind, step = self._calls % self._passes, self._calls // self._passes % self._steps
        self._calls += 1
        if step:
            last, last_signal = self._before[kind]
            norms = residual.norm(dim=-1), last.norm(dim=-1)
            self._ratios[step].append(float((norms[0] / norms[1].clamp_min(1e-8)).mean()))
            self._changes.append((relative(signal, last_signal), relative(residual, last)))
        self._before[kind] = residual, signal


def relative(now: torch.Tensor, before: torch.Tensor) -> float:
    """The L1 distance over that of `before` to zero."""
    return float((now - before).abs().mean() / before.abs().mean())
