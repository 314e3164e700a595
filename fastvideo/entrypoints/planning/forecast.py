"""Memory and time of each stage of a model, for one way to run it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.quantization import QUANTIZATIONS
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.planning.dry import DryPipeline, Shape, bare, shrunk
from fastvideo.entrypoints.planning.rehearse import LAYERS, USUAL, Size, line, rehearse
from fastvideo.entrypoints.planning.work import TIMES, frames_held, names_of, predictions, tiles_of, trace_stages
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.dits.base import BaseDiT
from fastvideo.models.encoders.base import TextEncoder
from fastvideo.models.loader.quantize import quantized_layers
from fastvideo.models.loader.repo import Repo

REHEARSED_FLOPS = 1e11
"""That a rehearsal of a stage may take."""
SAVING = 120 << 20
"""Bytes that the video encoder takes, beside the frames, where it is not rehearsed."""
LOOKAHEAD = 64
"""Frames of a video from which on its encoder takes no more memory."""
LIBRARIES = 8 << 20
"""Bytes that come with what is built when it is first used: tokenizer, sampler, progress."""
NONE: Mapping[str, str] = {}
"""No component is quantized."""
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
    unpacked: int = 0
    """Of the largest weight that is quantized, when its layer runs."""

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
    """Bytes, while it computes."""
    flops: float
    seconds: float | None
    """None where nothing can be measured."""
    frames: int = 0
    """Bytes of frames in host memory while it computes."""
    at_rest: int = 0
    """Bytes of frames in host memory before or after it computes."""
    passes: int = 1
    """How often all weights of a model are used."""
    visits: int = 1
    """How often a model is used, after another one."""


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


def weights_of(repo: Repo, config: PipelineConfig, quantized: Mapping[str, str] = NONE) -> dict[str, Weights]:
    """The weights of `repo`, from its configs alone; those of the components in `quantized` by the method there."""
    found = {}
    for source in repo.components.values():
        if source.has_weights:
            model, arch = bare(source, config)
            sizes = {id(x): x.nbytes for x in model.state_dict(keep_vars=True).values()}
            largest = 0
            if source.name in quantized:
                method = QUANTIZATIONS[quantized[source.name]]
                for layer in quantized_layers(model, arch).values():
                    largest = max(largest, layer.weight.nbytes if method.unpacks else 0)
                    sizes[id(layer.weight)] = method.bytes_of(*layer.weight.shape)
            total = sum(sizes.values())
            blocks = model.blocks if isinstance(model, BaseDiT | TextEncoder) else ()
            layers = [sum(sizes[id(x)] for x in block.state_dict(keep_vars=True).values()) for block in blocks]
            found[source.name] = Weights(
                name=source.name, nbytes=total, layer=max(layers, default=0), rest=total - sum(layers),
                unpacked=largest,
            )  # fmt: skip
    return found


def quantized_by(repo: Repo, args: FastVideoArgs) -> dict[str, str]:
    """The components of `repo` whose weights `args` quantize, and how."""
    names = (source.name for source in repo.components.values() if source.has_weights)
    return {name: method for name in names if (method := args.quantization_of(name)) is not None}


def costs_of(
    repo: Repo, config: PipelineConfig, sampling: SamplingParam, *, on_cpu: bool, quantized: Mapping[str, str] = NONE
) -> tuple[int | None, list[Cost]]:
    """Bytes of a process with its libraries alone, and the stages, for one video of `sampling`. On a CPU they are
    rehearsed, with the weights of the components in `quantized` by the method there; for another device, what PyTorch's
    tensors take is counted, and no time and no process is told of.

    Raises:
        ValueError: the model has stages that cannot be predicted, or the size is not one that it makes.
    """
    dry, few = DryPipeline(repo, config), DryPipeline(repo, config, layers=LAYERS)
    whole, (sampling, count) = sampling, dry.pieces(sampling)
    shape: Shape = dry.latent_shape(sampling)
    size = Size(
        denoised=dry.latents_of(sampling), shown=dry.shown(sampling),
        decoded=(shape if dry.rollout is None else dry.latents_of(sampling),),
        clip=(sampling.num_frames, sampling.height, sampling.width), frames=shape[1],
    )  # fmt: skip
    traces = trace_stages(dry, sampling, size)
    tiles, share = tiles_of(repo, dry, config, shape) if dry.rollout is None else (list(size.decoded), count / 2)
    work = predictions(dry, sampling, size)
    flops = {key: float(trace.total) for key, trace in traces.items()}
    flops |= {"denoising": work.flops, "decoding": share * flops["decoding"]}
    often: dict[str, int] = {key: count for key in ("media", "denoising", "decoding") if key in traces}
    if dry.segments is not None:
        flops |= {key: times * flops[key] for key, times in often.items()}
    seconds: Mapping[str, float | None]
    base = None
    if on_cpu:
        base, held, seconds = _rehearsed(
            repo, config, few, sampling, replace(size, decoded=tuple(tiles)), flops, quantized
        )
    else:
        with dry.counted() as one_tile:
            dry.decode(tiles[-1])
        held = {**{key: trace.peak for key, trace in traces.items()}, "decoding": one_tile.peak, "saving": SAVING}
        seconds = dict.fromkeys(held)
    beside: dict[str, int] = {"denoising": work.memory + work.past, "decoding": work.memory}
    stages, names = names_of(dry, dry.picked(sampling)[1])
    frames = frames_held(repo, dry, config, whole, shape)
    passes: dict[str, int] = {"denoising": work.passes * (count if dry.segments else 1)}
    return base, [
        Cost(
            name=stages.get(key, key), components=names.get(key, ()), held=int(held[key]) + beside.get(key, 0),
            flops=flops.get(key, 0), seconds=seconds[key], passes=passes.get(key, 1), visits=often.get(key, 1),
            frames=frames.get(key, (0, 0))[0], at_rest=frames.get(key, (0, 0))[1],
        )
        for key in (*traces, "saving")
    ]  # fmt: skip


def _smaller(size: Size, dry: DryPipeline, sampling: SamplingParam, shares: Mapping[str, float], half: bool) -> Size:
    """`size` with the work of each stage cut down to its share, or `half` of it, where it has one of less than 1."""
    denoised = shrunk(size.denoised, shares["denoising"], frames=dry.rollout is None, half=half)
    clip = size.clip
    if size.shown[-1] is not None:  # which has a frame less
        denoised = (denoised[0], max(2, denoised[1]), *denoised[2:])
    if shares.get("media", 1) < 1:
        whole: Shape = dry.latent_shape(sampling)
        few = min(whole[1], 1 + 2 * dry.vae.chunk)  # memory grows no more beyond these, but by the clip
        share = min(1.0, shares["media"] * whole[1] / few)
        small = dry.sampling_of(sampling, shrunk((whole[0], few, *whole[2:]), share, frames=False, half=half))
        clip = small.num_frames, small.height, small.width
    seen, *latents = size.shown
    fewer = size.denoised[1] - denoised[1]
    for place, one in enumerate(latents):
        if one is not None:  # which goes along with all frames, or all but some in front, or with some alone
            frames = one[2] - fewer if one[2] > fewer and one[2] >= size.denoised[1] - 1 else one[2]
            latents[place] = (*one[:2], frames, *denoised[2:])
    decoded = tuple(shrunk(tile, shares["decoding"], frames=False, half=half) for tile in size.decoded)
    return replace(size, denoised=denoised, shown=(seen, *latents), decoded=decoded, clip=clip)


def _rehearsed(
    repo: Repo,
    config: PipelineConfig,
    few: DryPipeline,
    sampling: SamplingParam,
    size: Size,
    flops: Mapping[str, float],
    quantized: Mapping[str, str],
) -> tuple[int, dict[str, float], dict[str, float | None]]:
    """Bytes of a process with its libraries alone; bytes held and seconds of each stage, from one run at full size, or
    where that would take long from two smaller ones: memory is on a line over what tensors are counted to take."""
    whole = trace_stages(few, sampling, size)
    sized = [key for key in ("media", "denoising", "decoding") if key in whole]
    shares: dict[str, float] = {key: min(1.0, TIMES.get(key, 1) * REHEARSED_FLOPS / whole[key].total) for key in sized}
    halves = [False] if min(shares.values()) == 1 else [True, False]
    sizes = [_smaller(size, few, sampling, shares, half) for half in halves]
    file = (min(sampling.num_frames, LOOKAHEAD), sampling.height, sampling.width)
    base, found = rehearse(repo.model, config, sampling, sizes, file, quantized)
    traces = [trace_stages(few, sampling, one) for one in sizes]
    held: dict[str, float] = {"saving": found["saving"].held[0] + found["saving"].kept}
    seconds: dict[str, float | None] = {"saving": None}
    for key, peak in whole.items():
        stage = found[key]
        points = [(float(trace[key].peak), float(size)) for trace, size in zip(traces, stage.held, strict=True)]
        lean = line(points, peak.peak)
        # the allocator keeps more as blocks get larger, up to those that it never keeps
        growth = min(peak.largest, USUAL) / min(traces[-1][key].largest, USUAL)
        held[key] = lean + stage.kept * growth
        seconds[key] = stage.seconds * flops[key] / traces[-1][key].total
    return base, held, seconds


def forecast(
    args: FastVideoArgs,
    weights: Mapping[str, Weights],
    costs: Sequence[Cost],
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
        on_cpu: whether the device's memory is the host's.
        base: bytes of the process before anything is loaded.
        rate: bytes a second at which weights come.
    """
    kept = {home: sum(w.nbytes for w in weights.values() if args.home(w.name) == home) for home in ("device", "host")}
    device = kept["device"] if on_cpu else kept["device"] + KERNELS
    host = base + LIBRARIES + kept["host"] + (kept["device"] if on_cpu else 0)
    read = kept["device"] + kept["host"]
    stages = [StageForecast(name="loading", device=device, host=host, seconds=read / rate)]
    for cost in costs:
        held = cost.held + max((weights[name].in_use(args) for name in cost.components), default=0)
        if not on_cpu:  # there it was rehearsed
            held += max((weights[name].unpacked for name in cost.components), default=0)
        here = on_cpu or not cost.components  # where it computes
        beside = max(cost.frames + (held if here else 0), cost.at_rest)
        seconds = None if cost.seconds is None else cost.seconds + _moved(cost, weights, args) / rate
        stages.append(
            StageForecast(
                name=cost.name, device=device + (held if cost.components else 0), host=host + beside, seconds=seconds,
                flops=cost.flops,
            )
        )  # fmt: skip
    return [replace(stage, device=stage.host) for stage in stages] if on_cpu else stages


def _moved(cost: Cost, weights: Mapping[str, Weights], args: FastVideoArgs) -> float:
    """Bytes of weights that come to the device for a stage."""
    away = sum(weights[name].nbytes for name in cost.components if args.home(name) != "device")
    if not away:
        return 0.0
    return away / len(cost.components) * (cost.passes if args.by_layer(cost.components[0]) else cost.visits)


def copy_rate() -> float:
    """Bytes a second that this machine copies, measured."""
    import time

    source = torch.ones(64 << 20, dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    started = time.perf_counter()
    target.copy_(source)
    return source.nbytes / (time.perf_counter() - started)
