"""Small runs of a model without its weights, in a process of their own: how its memory and time grow with the size.

What PyTorch's kernels take beside tensors, and what the C library's allocator keeps, no formula tells; a run does.
Transformers and text encoders run with two layers of zeros, which hold what all layers hold one after the other.

Memory is measured in two ways. With an allocator that gives all that is freed back at once, it is what tensors and
kernels need: the same in every run, and on a line over the sizes. What the usual allocator takes beyond that is
measured at the last size: it depends on the order of things, and grows no further once blocks are too large to keep.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av  # noqa: F401 - the process that is rehearsed for has all of these
import numpy as np
import torch

import fastvideo.entrypoints.video_generator  # noqa: F401
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.media import write_mp4
from fastvideo.entrypoints.planning.dry import DryPipeline, Shape, Shown
from fastvideo.layers.quantization import quantizer
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.platforms.cpu import CPUPlatform, keep_freed_memory, process_memory, return_freed_memory
from fastvideo.utils import resolve

LAYERS = 2
"""Of a transformer or text encoder."""
LEAN, USUAL = 128 << 10, 32 << 20
"""Bytes of the largest block that the allocator keeps when it is freed: as little as it does at first, and as much as
it comes to do."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """At which the stages run."""

    denoised: Shape
    shown: Shown
    decoded: tuple[Shape, ...]
    """One after the other."""
    clip: tuple[int, int, int]
    """Frames, height and width of the video that media are encoded for."""
    frames: int = 0
    """Of the latents of the whole video, of a model that makes some at a time."""


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """What a stage took."""

    held: tuple[int, ...]
    """Bytes at its peak for each of the sizes, over those of the process before the first stage."""
    kept: int
    """Bytes that the usual allocator takes beyond that."""
    seconds: float
    """For the last of the sizes."""


def rehearse(
    model: str,
    config: PipelineConfig,
    sampling: SamplingParam,
    sizes: Sequence[Size],
    file: tuple[int, int, int],
    quantized: Mapping[str, str],
) -> tuple[int, dict[str, Rehearsed]]:
    """Run the encoders, two predictions and the decoder for a request of `sampling`, in another process, for each of
    `sizes`; and write a video of `file`: frames, height and width. `quantized` names components, and how their weights
    are.

    Returns:
        Bytes of a process that has loaded the libraries and nothing else; and what each stage took: "text",
        "image" and "media" where the model is shown some, "denoising", "decoding", "saving".

    Raises:
        RuntimeError: the process failed; says how.
    """
    asked = {
        "model": model, "config": config.to_dict(), "class": f"{type(config).__module__}:{type(config).__qualname__}",
        "sampling": sampling.to_dict(), "sizes": [asdict(size) for size in sizes], "file": file,
        "threads": torch.get_num_threads(), "quantized": dict(quantized),
    }  # fmt: skip
    command = [sys.executable, "-m", "fastvideo.entrypoints.planning.rehearse", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise RuntimeError(f"the rehearsal of {model} failed: {lines[-1]}")
    bare, found = json.loads(done.stdout.splitlines()[-1])
    return bare, {name: Rehearsed(**values) for name, values in found.items()}


@torch.no_grad()
def main(asked: Mapping[str, Any]) -> tuple[int, dict[str, Rehearsed]]:
    """Run in this process; see `rehearse`."""
    torch.set_num_threads(asked["threads"])
    config = resolve(asked["class"])(**asked["config"])
    config.text_encoder_precisions = tuple(config.text_encoder_precisions)
    repo = resolve_repo(asked["model"])
    for method in asked["quantized"].values():
        quantizer(method)  # its library takes memory
    bare = process_memory("VmRSS") or 0
    dry = DryPipeline(repo, config, zeros=True, layers=LAYERS, quantized=asked["quantized"])
    sampling = resolve(repo.entry.sampling)(**asked["sampling"])
    timesteps, models = dry.picked(sampling)
    keep_freed_memory(LEAN)
    return_freed_memory()
    before = process_memory("VmRSS") or 0
    embed = partial(dry.embed, 1 + (sampling.guidance_scale > 1))
    text, sizes = embed(), [_size(size) for size in asked["sizes"]]

    first = models[0], float(timesteps[0])
    free = process_memory("VmRSS") or 0
    memories = {size: dry.memory(*first, size.denoised, text, size.frames) for size in sizes}
    before += (process_memory("VmRSS") or 0) - free  # which is counted by its size, and not by what two layers have

    def predict(size: Size) -> None:
        dry.predict(*first, size.denoised, text, size.shown, memories[size], times=2)

    def decode(size: Size) -> None:
        for shape in size.decoded:
            dry.decode(shape)

    def encode(size: Size) -> None:
        frames, height, width = size.clip
        dry.condition(replace(sampling, num_frames=frames, height=height, width=width))

    stages: dict[str, list[Callable[[], Any]]] = {"text": [embed for _ in sizes]}
    if dry.image_stage is not None:
        stages["image"] = [partial(dry.see, sampling) for _ in sizes]
    if dry.media:
        stages["media"] = [partial(encode, size) for size in sizes]
    stages["denoising"] = [partial(predict, size) for size in sizes]
    stages["decoding"] = [partial(decode, size) for size in sizes]
    stages["saving"] = [partial(_save, *asked["file"])]
    lean: dict[str, list[tuple[int, int, float]]] = {}
    for name, runs in stages.items():
        runs[0]()  # what is made when it is first needed: it stays, and takes time
        lean[name] = [_measured(run) for run in runs]
    keep_freed_memory(USUAL)
    found = {}
    for name, runs in stages.items():
        at, peak, seconds = _measured(runs[-1])
        kept = (peak - at) - (lean[name][-1][1] - lean[name][-1][0])
        held = tuple(peak - before for _, peak, _ in lean[name])
        found[name] = Rehearsed(held=held, kept=max(0, kept), seconds=seconds)
    return bare, found


def _size(values: Mapping[str, Any]) -> Size:
    """As JSON has it, with lists."""
    made = Size(**values)
    shown = tuple(None if one is None else tuple(one) for one in made.shown)
    return replace(made, denoised=_shape(made.denoised), shown=shown, decoded=tuple(map(_shape, made.decoded)),
                   clip=(made.clip[0], made.clip[1], made.clip[2]))  # fmt: skip


def _shape(values: Sequence[int]) -> Shape:
    channels, frames, height, width = values
    return channels, frames, height, width


def _save(frames: int, height: int, width: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # the frames are not touched, so that the system gives them no memory
        write_mp4(np.zeros((frames, height, width, 3), dtype=np.uint8), Path(folder) / "clip.mp4", 16, "")


def _measured(run: Callable[[], Any]) -> tuple[int, int, float]:
    """Bytes of the process before `run` and at its peak, and seconds."""
    cpu = CPUPlatform()
    return_freed_memory()
    cpu.reset_peak_memory()
    at, started = process_memory("VmRSS") or 0, time.perf_counter()
    run()
    return at, cpu.peak_memory(), time.perf_counter() - started


def line(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at `x` of the line through the first and the last of `points`, or of the only one."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    return y1 if x0 == x1 else y1 + (y1 - y0) / (x1 - x0) * (x - x1)


if __name__ == "__main__":
    libraries, stages = main(json.loads(sys.argv[1]))
    print(json.dumps([libraries, {name: asdict(value) for name, value in stages.items()}]))
