"""What the stages of a model compute, counted where nothing is, and the frames that they have in host memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.planning.dry import DryPipeline, Shape, bare
from fastvideo.entrypoints.planning.rehearse import Size
from fastvideo.entrypoints.planning.trace import Trace
from fastvideo.models.loader.component_loader import tiling_of
from fastvideo.models.loader.repo import Repo
from fastvideo.platforms import DTYPES

TIMES = {"denoising": 2}
"""How often a stage is run for what it holds: a prediction is there when the next one is made."""


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """All predictions for a video, or for one of its segments."""

    flops: float
    passes: int
    memory: int = 0
    """Bytes that the layers keep of earlier chunks, at most."""
    past: int = 0
    """The same of the decoder."""


def predictions(dry: DryPipeline, sampling: SamplingParam, size: Size) -> Denoising:
    """What is the same at all steps is made by the first; what is seen of earlier chunks grows up to a window."""
    timesteps, models = dry.picked(sampling)
    first = models[0], float(timesteps[0])
    found: list[Trace] = []
    guided = sampling.guidance_scale > 1
    with dry.counted():
        text = dry.embed(1 + guided)
    if dry.rollout is None:
        for times in (1, 2):
            with dry.counted() as trace:
                dry.predict(*first, size.denoised, text, size.shown, times=times)
            found.append(trace)
        passes, once = len(timesteps) * (1 + guided), found[0].total
        again = found[1].total - once
        return Denoising(flops=once * (1 + guided) + again * (passes - 1 - guided), passes=passes)
    chunk, count = dry.rollout.chunk, dry.pieces(sampling).number
    with dry.counted() as alone:
        dry.predict(*first, size.denoised, text)
    with dry.counted():
        memory = dry.memory(*first, size.denoised, text, size.frames)
        past = dry.decode(size.decoded[-1])
    assert memory is not None
    start = memory.start
    with dry.counted() as last:
        dry.predict(*first, size.denoised, text, memory=memory)
    # attention grows with what is seen, and nothing else does
    room = memory.window - chunk
    seen = [min(dry.rollout.first + number * chunk, room) for number in range(count)]
    growth = (last.total - alone.total) / max(1, min(start, room))
    # after the steps of each chunk but the last, a pass over it when it is done
    runs = [len(timesteps) + (number + 1 < count) for number in range(count)]
    flops = sum(times * (alone.total + growth * frames) for times, frames in zip(runs, seen, strict=True))
    return Denoising(flops=flops, passes=sum(runs), memory=memory.nbytes, past=past)


def names_of(dry: DryPipeline, models: Sequence[Any]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """The names of the stages, and of the components that each uses."""
    vae = dry.names[dry.vae]
    stages = {"text": dry.text_stage.name, "denoising": dry.denoising.name, "decoding": dry.decoding.name}
    if dry.rollout is not None:  # one stage does all
        stages |= {"media": "first frame", "decoding": "decoding"}
    names = {
        "text": (dry.names[dry.text_stage.encoder],),
        "denoising": tuple(dict.fromkeys(dry.names[model] for model in models)),
        "decoding": (vae,),
        "media": (vae,),
    }
    if dry.image_stage is not None:
        stages["image"], names["image"] = dry.image_stage.name, (dry.names[dry.image_stage.encoder],)
    if dry.media_stage is not None:
        stages["media"] = dry.media_stage.name
    return stages, names


def trace_stages(dry: DryPipeline, sampling: SamplingParam, size: Size) -> dict[str, Trace]:
    """What each stage would compute, one prediction of those of denoising."""
    timesteps, models = dry.picked(sampling)
    frames, height, width = size.clip
    encoded = replace(sampling, num_frames=frames, height=height, width=width)
    found: dict[str, Trace] = {}
    with dry.counted() as found["text"]:
        text = dry.embed(1 + (sampling.guidance_scale > 1))
    if dry.image_stage is not None:
        with dry.counted() as found["image"]:
            dry.see(sampling)
    if dry.media:
        with dry.counted() as found["media"]:
            dry.condition(encoded)
    first = models[0], float(timesteps[0])
    with dry.counted():
        memory = dry.memory(*first, size.denoised, text, size.frames)
    with dry.counted() as found["denoising"]:
        dry.predict(*first, size.denoised, text, size.shown, memory, times=TIMES["denoising"])
    with dry.counted() as found["decoding"]:
        for one in size.decoded:
            dry.decode(one)
    return found


def frames_held(
    repo: Repo, dry: DryPipeline, config: PipelineConfig, sampling: SamplingParam, shape: Shape
) -> dict[str, tuple[int, int]]:
    """Bytes of frames in host memory while a stage computes, and when it does not: fp32 in parts and then as one,
    and for a file 8 bit, four times; of tiles also the mosaic, and the edges that the next tiles are blended with."""
    video = 4 * 3 * sampling.num_frames * sampling.height * sampling.width
    mosaic = 0.0
    if config.vae_tiling:
        arch = bare(repo.components[dry.names[dry.vae]], config)[1]
        assert arch.latent_scale is not None
        tiling = tiling_of(arch, config).over(arch.latent_scale[1])
        tiles = tiling.tiles(*shape[2:])
        if len(tiles) > 1:
            area, share = shape[2] * shape[3], DTYPES[config.precision_of(dry.names[dry.vae])].itemsize / 4
            row = sum(tile.width for tile in tiles if tile.row == 0)
            mosaic = video * share * (1 + tiling.overlap * (row + tiling.size) / area)
    during = int(mosaic) or video
    shown = sum(clip.nbytes for clip in _clips(dry, sampling))
    # a video in pieces is there but for the last one when that is denoised
    before = video * (1 - 1 / dry.pieces(sampling).number)
    found = {"decoding": (during, int(mosaic) + 2 * video), "saving": (2 * video, 3 * video)}
    found |= {key: (int(before), 0) for key in ("media", "denoising") if before}
    return {key: (some + shown, rest + shown) for key, (some, rest) in found.items()}


def _clips(dry: DryPipeline, sampling: SamplingParam) -> list[torch.Tensor]:
    """What is shown of a whole video that is made in segments, each of which is given its part."""
    if dry.segments is None:
        return []
    with torch.device("meta"):
        media = dry.request(sampling).media
    return [clip for clip in (media.pose_video, media.face_video) if clip is not None]


def tiles_of(repo: Repo, dry: DryPipeline, config: PipelineConfig, shape: Shape) -> tuple[list[Shape], float]:
    """The shapes of latents that are decoded at once, the largest last, in as many frames as memory grows with; and how
    many times the frame's area all tiles have."""
    channels, frames, h, w = shape
    chunk = dry.vae.chunk
    few = min(frames, 2 * chunk + frames % chunk)
    if not config.vae_tiling:
        return [(channels, few, h, w)], 1.0
    arch = bare(repo.components[dry.names[dry.vae]], config)[1]
    assert arch.latent_scale is not None
    tiles = tiling_of(arch, config).over(arch.latent_scale[1]).tiles(h, w)
    sides = sorted({(tile.height, tile.width) for tile in tiles}, key=math.prod)
    area = sum(tile.height * tile.width for tile in tiles)
    return [(channels, few, *side) for side in sides], area / (h * w)
