"""Memory and time of each stage of a model, for one way to run it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.planning.dry import DryPipeline, Shape, bare, shrunk
from fastvideo.entrypoints.planning.rehearse import LAYERS, line, rehearse
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.dits.base import BaseDiT
from fastvideo.models.encoders.base import TextEncoder
from fastvideo.models.loader.component_loader import tiling_of
from fastvideo.models.loader.repo import Repo

REHEARSED_FLOPS = 1e11
"""That a rehearsal of a stage may take."""
SAVING = 120 << 20
"""Bytes that the video encoder takes, beside the frames."""
LIBRARIES = 16 << 20
"""Bytes that come with what is imported or built when it is first used: tokenizer, sampler, kernels."""
KERNELS = 700 << 20
"""Bytes of a CUDA device that its context and libraries take."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A component's weights in memory, in bytes."""

    name: str
    nbytes: int
    layer: int
    """Of its largest layer; 0 where there are none."""
    rest: int
    """Of what belongs to no layer."""

    def in_use(self, args: FastVideoArgs) -> int:
        """What of them comes to the device for a stage, beside what is always there."""
        if args.home(self.name) == "device":
            return 0
        return self.rest + 2 * self.layer if self.layer and args.by_layer(self.name) else self.nbytes


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage takes beside weights."""

    name: str
    components: tuple[str, ...]
    held: int
    """Bytes."""
    flops: float
    seconds: float | None
    """None where nothing can be measured."""
    passes: int = 1
    """How often all weights of a model are used."""


@dataclass(frozen=True, kw_only=True)
class StageForecast:
    """A stage at its peak."""

    name: str
    device: int
    """Bytes of the device's memory; on a CPU the same as `host`."""
    host: int
    """Bytes of this process, its libraries included."""
    seconds: float | None
    flops: float = 0


def weights_of(repo: Repo, config: PipelineConfig) -> dict[str, Weights]:
    """The weights of `repo`, from its configs alone."""
    found = {}
    for source in repo.components.values():
        if source.has_weights:
            model, _ = bare(source, config)
            total = sum(x.nbytes for x in model.state_dict().values())
            blocks = model.blocks if isinstance(model, BaseDiT | TextEncoder) else ()
            layers = [sum(x.nbytes for x in block.state_dict().values()) for block in blocks]
            found[source.name] = Weights(
                name=source.name, nbytes=total, layer=max(layers, default=0), rest=total - sum(layers)
            )
    return found


def costs_of(repo: Repo, config: PipelineConfig, sampling: SamplingParam, *, on_cpu: bool) -> list[Cost]:
    """The stages that compute, for one video of `sampling`. On a CPU they are rehearsed; for another device, what
    PyTorch's tensors take is counted, and no time is told.

    Raises:
        ValueError: the model has stages that cannot be predicted, or the size is not one that it makes.
    """
    dry, few = DryPipeline(repo, config), DryPipeline(repo, config, layers=LAYERS)
    guided = sampling.guidance_scale > 1
    shape: Shape = dry.latent_shape(sampling)
    timesteps, models = dry.picked(sampling)
    passes = len(timesteps) * (1 + guided)
    with dry.counted() as text_trace:
        text = dry.embed(1 + guided)
    with dry.counted() as step_trace:
        dry.predict(models[0], float(timesteps[0]), shape, text)
    with dry.counted() as all_frames:
        dry.decode(shape)
    tile, share = _tile(repo, dry, config, shape)
    flops = {
        "text": sum(text_trace.flops.values()),
        "denoising": passes * sum(step_trace.flops.values()),
        "decoding": share * sum(all_frames.flops.values()),
    }
    seconds: Mapping[str, float | None]
    if on_cpu:
        held, seconds = _rehearsed(repo, config, few, guided, shape, tile, flops)
    else:
        with dry.counted() as one_tile:
            dry.decode(tile)
        held = {"text": text_trace.peak, "denoising": step_trace.peak, "decoding": one_tile.peak}
        seconds = dict.fromkeys(held)
    names = {
        "text": (dry.names[dry.text_stage.encoder],),
        "denoising": tuple(dict.fromkeys(dry.names[model] for model in models)),
        "decoding": (dry.names[dry.vae],),
    }
    stages = {"text": dry.text_stage.name, "denoising": dry.denoising.name, "decoding": dry.decoding.name}
    return [
        Cost(
            name=stages[key], components=names[key], held=int(held[key]), flops=flops[key], seconds=seconds[key],
            passes=passes if key == "denoising" else 1,
        )
        for key in stages
    ]  # fmt: skip


def _tile(repo: Repo, dry: DryPipeline, config: PipelineConfig, shape: Shape) -> tuple[Shape, float]:
    """The largest tile of latents that is decoded at once, in as many frames as memory grows with; and how many times
    the frame's area all tiles have."""
    channels, frames, h, w = shape
    few = min(frames, 2 * dry.vae.chunk + 1)
    if not config.vae_tiling:
        return (channels, few, h, w), 1.0
    arch = bare(repo.components[dry.names[dry.vae]], config)[1]
    assert arch.latent_scale is not None
    tiles = tiling_of(arch, config).over(arch.latent_scale[1]).tiles(h, w)
    largest = max(tiles, key=lambda tile: tile.height * tile.width)
    area = sum(tile.height * tile.width for tile in tiles)
    return (channels, few, largest.height, largest.width), area / (h * w)


def _rehearsed(
    repo: Repo,
    config: PipelineConfig,
    few: DryPipeline,
    guided: bool,
    shape: Shape,
    tile: Shape,
    flops: Mapping[str, float],
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes held and seconds of each stage, from one run, or where it would take long from two smaller ones."""

    def work(latents: Shape, decoded: Shape) -> dict[str, float]:
        timesteps, models = few.picked(SamplingParam(num_inference_steps=2))
        with few.counted() as texts:
            text = few.embed(1 + guided)
        with few.counted() as step:
            few.predict(models[0], float(timesteps[0]), latents, text)
        with few.counted() as decode:
            few.decode(decoded)
        traces = {"text": texts, "denoising": step, "decoding": decode}
        return {key: float(sum(trace.flops.values())) for key, trace in traces.items()}

    whole = work(shape, tile)
    shares = [min(1.0, REHEARSED_FLOPS / whole[key]) for key in ("denoising", "decoding")]
    runs = [1.0] if min(shares) == 1 else [0.5, 1.0]
    points: dict[str, list[tuple[float, float]]] = {"text": [], "denoising": [], "decoding": []}
    seconds: dict[str, float] = {}
    for part in runs:
        latents = shrunk(shape, part * shares[0] if shares[0] < 1 else 1, frames=True)
        decoded = shrunk(tile, part * shares[1] if shares[1] < 1 else 1, frames=False)
        found = rehearse(repo.model, config, 1 + guided, latents, decoded)
        done = work(latents, decoded)
        done["denoising"] *= 2  # it predicts twice
        for key, extent in (("text", 1), ("denoising", math.prod(latents[1:])), ("decoding", math.prod(decoded[2:]))):
            points[key].append((extent, found[key].held))
            seconds[key] = found[key].seconds * flops[key] / done[key]
    wanted = {"text": 1, "denoising": math.prod(shape[1:]), "decoding": math.prod(tile[2:])}
    held = {}
    for key, pairs in points.items():
        apart = [pairs[-1]] if len({x for x, _ in pairs}) == 1 else pairs
        held[key] = line(apart, wanted[key])
    return held, seconds


def forecast(
    args: FastVideoArgs,
    weights: Mapping[str, Weights],
    costs: Sequence[Cost],
    sampling: SamplingParam,
    *,
    on_cpu: bool,
    base: int,
    rate: float,
) -> list[StageForecast]:
    """Each stage's peak and time.

    Args:
        args: say where weights are kept.
        weights: of the components.
        costs: of the stages that compute.
        sampling: of the video.
        on_cpu: whether the device's memory is the host's.
        base: bytes of this process before anything is loaded.
        rate: bytes a second at which weights come.
    """
    kept = {home: sum(w.nbytes for w in weights.values() if args.home(w.name) == home) for home in ("device", "host")}
    video = 4 * 3 * sampling.num_frames * sampling.height * sampling.width
    device = kept["device"] if on_cpu else kept["device"] + KERNELS
    host = base + LIBRARIES + kept["host"] + (kept["device"] if on_cpu else 0)
    read = kept["device"] + kept["host"]
    stages = [StageForecast(name="loading", device=device, host=host, seconds=read / rate)]
    for cost in costs:
        coming = max(weights[name].in_use(args) for name in cost.components)
        held = coming + cost.held
        frames = video if cost is costs[-1] else 0
        moved = cost.passes * sum(
            weights[name].nbytes for name in cost.components if args.home(name) != "device"
        ) / len(cost.components)  # fmt: skip
        if not args.by_layer(cost.components[0]):
            moved /= cost.passes
        seconds = None if cost.seconds is None else cost.seconds + moved / rate
        stages.append(
            StageForecast(
                name=cost.name, device=device + held, host=host + frames + (held if on_cpu else 0), seconds=seconds,
                flops=cost.flops,
            )
        )  # fmt: skip
    stages.append(StageForecast(name="saving", device=device, host=host + SAVING + int(2.25 * video), seconds=None))
    return [replace(stage, device=stage.host) for stage in stages] if on_cpu else stages


def copy_rate() -> float:
    """Bytes a second that this machine copies, measured."""
    import time

    source = torch.ones(64 << 20, dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    started = time.perf_counter()
    target.copy_(source)
    return source.nbytes / (time.perf_counter() - started)
