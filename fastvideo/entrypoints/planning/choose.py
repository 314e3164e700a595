"""Which options make a model fit into the memory there is: those that change least, and of these the quickest."""

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.planning.forecast import (
    StageForecast,
    Weights,
    copy_rate,
    costs_of,
    forecast,
    weights_of,
)
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import init_logger
from fastvideo.models.loader.repo import Repo
from fastvideo.platforms import current_platform
from fastvideo.platforms.cpu import CPUPlatform, process_memory
from fastvideo.utils import require, resolve

logger = init_logger(__name__)

ON_CPU: tuple[dict[str, Any], ...] = (
    {}, {"disk_offload": ("text_encoder",)}, {"disk_offload": True},
    {"disk_offload": True, "dit_layerwise_offload": True},
)  # fmt: skip
"""Ways to keep weights elsewhere, from quick to slow."""
ON_GPU: tuple[dict[str, Any], ...] = (
    {},
    {"text_encoder_cpu_offload": True},
    {"text_encoder_cpu_offload": True, "dit_cpu_offload": True, "vae_cpu_offload": True},
    {"text_encoder_cpu_offload": True, "dit_layerwise_offload": True, "vae_cpu_offload": True},
    {"disk_offload": ("text_encoder",)},
    {"disk_offload": ("text_encoder",), "dit_cpu_offload": True, "vae_cpu_offload": True},
    {"disk_offload": ("text_encoder",), "dit_layerwise_offload": True, "vae_cpu_offload": True},
    {"disk_offload": True},
    {"disk_offload": True, "dit_layerwise_offload": True},
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run a model, and what it takes."""

    options: dict[str, Any]
    """Of the engine, beside those given."""
    config: PipelineConfig
    stages: list[StageForecast]
    fits: bool

    @property
    def words(self) -> str:
        """What is asked for, as options."""
        plain = dict(self.options)
        if self.config.vae_tiling:
            plain["vae_tiling"] = True
        return ", ".join(f"{name}={value}" for name, value in plain.items()) or "as it is"

    @property
    def device(self) -> int:
        """Bytes of the device at the peak."""
        return max(stage.device for stage in self.stages)

    @property
    def host(self) -> int:
        """Bytes of the process at the peak."""
        return max(stage.host for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of all stages; None where it is not known."""
        known = [stage.seconds for stage in self.stages[:-1]]
        return None if None in known else sum(second for second in known if second is not None)


def ways(
    repo: Repo,
    args: FastVideoArgs,
    config: PipelineConfig,
    sampling: SamplingParam,
    *,
    explicit: Collection[str],
    on_cpu: bool,
    device_memory: int,
    host_memory: int,
    here: bool = False,
) -> Iterator[Way]:
    """All ways to run `repo`, the ones that change the video after those that do not, the slower after the quicker.

    Args:
        repo: a resolved repo.
        args: what was asked for, which is kept.
        config: of its pipeline.
        sampling: of the video to plan for.
        explicit: options that are not to be chosen.
        on_cpu: whether the device's memory is the host's.
        device_memory: bytes that there are.
        host_memory: bytes that there are.
        here: whether the model will run in this process, whatever that holds already, and not in one of its own.
    """
    resolve(repo.entry.pipeline)
    resolve("av:open")  # what writes the video takes memory too
    own, rate = process_memory("VmRSS") or 0, copy_rate()
    for options, changed in _changes(args, config, explicit):
        weights: dict[str, Weights] = weights_of(repo, changed)
        fresh, costs = costs_of(repo, changed, sampling, on_cpu=on_cpu)
        base = own if here or fresh is None else fresh
        for homes in ON_CPU if on_cpu else ON_GPU:
            if any(name in explicit for name in homes):
                continue
            chosen = dataclasses.replace(args, **homes)
            stages = forecast(chosen, weights, costs, on_cpu=on_cpu, base=base, rate=rate)
            fits = max(s.host for s in stages) <= host_memory and (
                on_cpu or max(s.device for s in stages) <= device_memory
            )
            yield Way(options={**options, **homes}, config=changed, stages=stages, fits=fits)


def _changes(
    args: FastVideoArgs, config: PipelineConfig, explicit: Collection[str]
) -> Iterator[tuple[dict[str, Any], PipelineConfig]]:
    """What changes the video: nothing, tiles, bf16, and both."""
    may_change = "pipeline_config" not in explicit
    for precision in ("", "bf16") if may_change and "precision" not in explicit else ("",):
        base = config.with_precision(precision) if precision else config
        if precision and base.to_dict() == config.to_dict():
            continue
        options = {"precision": precision} if precision else {}
        yield options, base
        if may_change and not config.vae_tiling:
            yield options, dataclasses.replace(base, vae_tiling=True)


def choose(found: Iterator[Way]) -> tuple[Way | None, list[Way]]:
    """The first that fits, or None; and all that were looked at."""
    seen = []
    for way in found:
        seen.append(way)
        if way.fits:
            return way, seen
    return None, seen


def fitted(
    repo: Repo, args: FastVideoArgs, config: PipelineConfig, explicit: Collection[str]
) -> tuple[FastVideoArgs, PipelineConfig]:
    """`args` and `config` with what is not `explicit` chosen so that a video of the model's own size fits here.

    Raises:
        ValueError: nothing fits, or the model or the device cannot be planned for.
    """
    platform, host = current_platform(args.device), CPUPlatform()
    kind = platform.device_type
    require(kind != "mps", "memory", args.memory, "knows CPU and CUDA devices", "leave it None")
    there = host.available_memory() + (process_memory("VmRSS") or 0)
    sampling: SamplingParam = resolve(repo.entry.sampling)()
    found = ways(
        repo, args, config, sampling, explicit=explicit, on_cpu=kind == "cpu",
        device_memory=platform.available_memory(), host_memory=there, here=True,
    )  # fmt: skip
    way, seen = choose(found)
    if way is None:
        least = min(seen, key=lambda one: one.device)
        require(False, "memory", args.memory, f"nothing fits: {least.words} needs {least.device / 1e9:.1f} GB",
                "close other programs, or use a smaller model")  # fmt: skip
        raise AssertionError
    logger.info("memory: %s, %.1f GB at the peak", way.words, way.device / 1e9)
    return dataclasses.replace(args, **way.options), way.config
