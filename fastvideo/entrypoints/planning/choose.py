"""Which options make a model fit into the memory there is: those that change least, and of these the quickest."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.quantization import BF16_PSNR, QUANTIZATIONS
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.planning.dry import bare
from fastvideo.entrypoints.planning.forecast import (
    StageForecast,
    Weights,
    copy_rate,
    costs_of,
    forecast,
    quantized_by,
    weights_of,
)
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.layers.quantization import check_layer, quantizer, why_not
from fastvideo.logger import init_logger
from fastvideo.models.loader.component_loader import tiling_of
from fastvideo.models.loader.quantize import quantized_layers
from fastvideo.models.loader.repo import Repo
from fastvideo.models.vaes.base import BaseVAE
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
QUANTIZED = ("quantization", "text_encoder_quantization")
METHODS = ("int8", "nf4")
"""Ways to quantize, from little to much that changes; others take as much memory as one of these and change more."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run a model, and what it takes."""

    options: dict[str, Any]
    """Of the engine, beside those given."""
    config: PipelineConfig
    stages: list[StageForecast]
    fits: bool

    @property
    def quality(self) -> str:
        """What the options change in the video: PSNR to that of whole weights in fp32, as measured with the model in
        the package."""
        method = self.options.get("quantization", self.options.get("text_encoder_quantization"))
        costs = ["seams of tiles, not measured"] if self.config.vae_tiling else []
        if "precision" in self.options:
            costs.append(f"bf16: {BF16_PSNR:g} dB")
        if method is not None:
            psnr = QUANTIZATIONS[method].psnr
            costs.append(f"{method}: " + ("not measured" if psnr is None else f"{psnr:g} dB"))
        return ", ".join(costs) or "the same video"

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
    device = "cpu" if on_cpu else "cuda"
    check(repo, config, args, device)
    resolve(repo.entry.pipeline)
    resolve("av:open")  # what writes the video takes memory too
    own, rate = process_memory("VmRSS") or 0, copy_rate()
    for options, changed in _changes(repo, args, config, explicit, device):
        asked = dataclasses.replace(args, **options)
        quantized = quantized_by(repo, asked)
        weights: dict[str, Weights] = weights_of(repo, changed, quantized)
        homes_of = [
            homes for homes in (ON_CPU if on_cpu else ON_GPU)
            if not any(name in explicit for name in homes)
            and _goes(repo, dataclasses.replace(asked, **homes), changed, quantized, device)
        ]  # fmt: skip
        if not homes_of:
            continue
        fresh, costs = costs_of(repo, changed, sampling, on_cpu=on_cpu, quantized=quantized)
        if here and quantized:
            own = process_memory("VmRSS") or 0  # with the library that quantizes
        base = own if here or fresh is None else fresh
        for homes in homes_of:
            chosen = dataclasses.replace(asked, **homes)
            stages = forecast(chosen, weights, costs, on_cpu=on_cpu, base=base, rate=rate)
            fits = max(s.host for s in stages) <= host_memory and (
                on_cpu or max(s.device for s in stages) <= device_memory
            )
            yield Way(options={**options, **homes}, config=changed, stages=stages, fits=fits)


def _goes(repo: Repo, args: FastVideoArgs, config: PipelineConfig, quantized: Collection[str], device: str) -> bool:
    """Whether all options go together, on a device of that type: what the start would refuse is not looked at."""
    try:
        dataclasses.replace(args, pipeline_config=config).check_combinations(device, repo.entry.streams)
        args.check_components([source.name for source in repo.components.values() if source.has_weights])
    except ValueError:
        return False
    return all(args.home(name) == "device" for name in quantized)


def _changes(
    repo: Repo, args: FastVideoArgs, config: PipelineConfig, explicit: Collection[str], device: str
) -> Iterator[tuple[dict[str, Any], PipelineConfig]]:
    """What changes the video: nothing, tiles, bf16, and both; and then quantized weights, in as many bits as there can
    be, of the transformer, and of the text encoder too, in the smallest precision."""
    whole = list(_whole(repo, args, config, explicit))
    yield from whole
    smallest = [one for one in whole if one[0] == whole[-1][0]]
    free = [name for name in QUANTIZED if name not in explicit and getattr(args, name) is None]
    kinds = dict.fromkeys((tuple(free[:1]), tuple(free))) if free else ()
    for method in METHODS:
        for kind in kinds:
            given = {**whole[-1][0], **dict.fromkeys(kind, method)}
            try:
                check(repo, whole[-1][1], dataclasses.replace(args, **given), device)
            except ValueError as error:
                logger.info("not to be chosen: %s", error)
                continue
            yield from ((given, changed) for _, changed in smallest)


def check(repo: Repo, config: PipelineConfig, args: FastVideoArgs, device: str) -> None:
    """Check that the weights of `repo` can be quantized as `args` ask, on a device of that type.

    Raises:
        ValueError: the device, the precision or a layer's size forbids it, or `torchao` is not installed.
    """
    args.check_combinations(device, repo.entry.streams)
    for name, method in quantized_by(repo, args).items():
        option = args.quantization_option(name)
        # a device that is planned for need not be here
        there = current_platform(args.device).device if current_platform(args.device).device_type == device else None
        reason = why_not(method, there or torch.device(device), config.precision_of(name))
        require(reason is None, option, method, reason or "")
        model, arch = bare(repo.components[name], config)
        for weight, layer in quantized_layers(model, arch).items():
            check_layer(method, option, weight, layer)
        quantizer(method, option)


def _cuts(repo: Repo, config: PipelineConfig) -> bool:
    """Whether the VAE of `repo` works in tiles."""
    for source in repo.components.values():
        model, arch = bare(source, config) if source.has_weights else (None, None)
        if isinstance(model, BaseVAE) and arch is not None:
            try:
                model.cut(tiling_of(arch, config))
            except ValueError:
                return False
    return True


def _whole(
    repo: Repo, args: FastVideoArgs, config: PipelineConfig, explicit: Collection[str]
) -> Iterator[tuple[dict[str, Any], PipelineConfig]]:
    may_change = "pipeline_config" not in explicit
    for precision in ("", "bf16") if may_change and "precision" not in explicit else ("",):
        base = config.with_precision(precision) if precision else config
        if precision and base.to_dict() == config.to_dict():
            continue
        options = {"precision": precision} if precision else {}
        yield options, base
        if may_change and not config.vae_tiling and _cuts(repo, config):
            yield options, dataclasses.replace(base, vae_tiling=True)


def choose(found: Iterator[Way]) -> tuple[Way | None, list[Way]]:
    """The first that fits, or None; and all that were looked at."""
    seen = []
    for way in found:
        seen.append(way)
        if way.fits:
            return way, seen
    return None, seen


def nearest_way(seen: Sequence[Way], on_cpu: bool, device_memory: int, host_memory: int) -> str:
    """Of ways that do not fit the one that is short of the least, in words: which memory it is short of, how much it
    needs, and how much there is."""

    def short(way: Way) -> list[tuple[str, int, int]]:
        sides = [("memory" if on_cpu else "host memory", way.host, host_memory)]
        sides += [] if on_cpu else [("GPU memory", way.device, device_memory)]
        return [(name, needed, max(0, there)) for name, needed, there in sides if needed > there]

    nearest = min(seen, key=lambda way: max(needed / max(1, there) for _, needed, there in short(way)))
    needs = (f"{needed / 1e9:.2f} GB of {name}, of which there are {there / 1e9:.2f}"
             for name, needed, there in short(nearest))  # fmt: skip
    return f"{nearest.words} needs {', and '.join(needs)}"


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
    there, on_device = host.available_memory() + (process_memory("VmRSS") or 0), platform.available_memory()
    sampling: SamplingParam = resolve(repo.entry.sampling)()
    found = ways(
        repo, args, config, sampling, explicit=explicit, on_cpu=kind == "cpu",
        device_memory=on_device, host_memory=there, here=True,
    )  # fmt: skip
    way, seen = choose(found)
    if way is None:
        least = nearest_way(seen, kind == "cpu", on_device, there)
        require(False, "memory", args.memory, f"nothing fits: {least}",
                "close other programs, or use a smaller model")  # fmt: skip
        raise AssertionError
    logger.info("memory: %s, %.1f GB at the peak; %s", way.words, way.device / 1e9, way.quality)
    return dataclasses.replace(args, **way.options), way.config
