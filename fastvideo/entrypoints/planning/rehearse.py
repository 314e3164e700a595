"""A small run of a model without its weights, in a process of its own: how its memory and time grow with the size.

What PyTorch's kernels take beside tensors, and what the C library's allocator keeps, no formula tells; a run does.
Transformers and text encoders run with two layers of zeros, which hold what all layers hold one after the other.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.entrypoints.planning.dry import DryPipeline, Shape
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.platforms.cpu import CPUPlatform, process_memory
from fastvideo.utils import resolve

LAYERS = 2
"""Of a transformer or text encoder."""


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """What a stage took."""

    held: int
    """Bytes at its peak, over those of the process before the first stage."""
    seconds: float


def rehearse(model: str, config: PipelineConfig, prompts: int, latents: Shape, decoded: Shape) -> dict[str, Rehearsed]:
    """Run the text encoder, one prediction for `latents` (two when there are two `prompts`) and the decoder for
    `decoded`, in another process.

    Returns:
        By the stage: "text", "denoising", "decoding".

    Raises:
        RuntimeError: the process failed; says how.
    """
    asked = {
        "model": model, "config": config.to_dict(), "class": f"{type(config).__module__}:{type(config).__qualname__}",
        "prompts": prompts, "latents": latents, "decoded": decoded, "threads": torch.get_num_threads(),
    }  # fmt: skip
    command = [sys.executable, "-m", "fastvideo.entrypoints.planning.rehearse", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise RuntimeError(f"the rehearsal of {model} failed: {lines[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: Rehearsed(**values) for name, values in found.items()}


@torch.no_grad()
def main(asked: dict[str, Any]) -> dict[str, Rehearsed]:
    """Run in this process."""
    torch.set_num_threads(asked["threads"])
    config = resolve(asked["class"])(**{**asked["config"], "vae_tiling": False})
    config.text_encoder_precisions = tuple(config.text_encoder_precisions)
    dry = DryPipeline(resolve_repo(asked["model"]), config, zeros=True, layers=LAYERS)
    cpu, found, before = CPUPlatform(), dict[str, Rehearsed](), process_memory("VmRSS") or 0

    def timed(name: str, run: Callable[[], Any]) -> Any:
        cpu.reset_peak_memory()
        started = time.perf_counter()
        made = run()
        found[name] = Rehearsed(held=cpu.peak_memory() - before, seconds=time.perf_counter() - started)
        return made

    text = timed("text", lambda: dry.embed(asked["prompts"]))
    timesteps, models = dry.picked(resolve(resolve_repo(asked["model"]).entry.sampling)())
    latents, decoded = tuple(asked["latents"]), tuple(asked["decoded"])
    step = [dry.predict(models[0], float(timesteps[0]), latents, text)]
    del step
    timed("denoising", lambda: [dry.predict(models[0], float(timesteps[0]), latents, text) for _ in range(2)])
    timed("decoding", lambda: dry.decode(decoded))
    return found


def line(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at `x` of the line through two points, or of the only one."""
    if len(points) == 1:
        return points[0][1]
    (x0, y0), (x1, y1) = points
    return y1 + (y1 - y0) / (x1 - x0) * (x - x1)


if __name__ == "__main__":
    print(json.dumps({name: asdict(value) for name, value in main(json.loads(sys.argv[1])).items()}))
