"""Draw prompts with a model, in as many processes as there are cores, and judge the clips.

Verdicts are kept in a folder named after the weights, a line a clip, so that a run can be killed and goes on.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastvideo import SamplingParam, VideoGenerator
from fastvideo.logger import init_logger
from fastvideo.models.loader.repo import resolve_repo
from recipes.shapes.evaluate import Prompt, Verdict, accuracy, held_out_prompts, judge, judge_two, training_prompts

logger = init_logger("fastvideo.recipes.shapes")

DEFAULTS = SamplingParam.from_pretrained("shapes-t2v")
SPLITS = ("unseen", "two objects", "seen")


@dataclass(frozen=True)
class Cell:
    """One row of a table: `count` prompts of `split`, and how they are drawn. `seed` is that of the noise."""

    split: str = "unseen"
    count: int = 200
    seed: int = 0
    size: int = DEFAULTS.height
    frames: int = DEFAULTS.num_frames
    steps: int = DEFAULTS.num_inference_steps
    guidance: float = DEFAULTS.guidance_scale

    def prompts(self) -> list[Prompt]:
        """Scenes and captions; the same for every cell of a split and count."""
        if self.split == "seen":
            return training_prompts(self.count)
        return held_out_prompts(self.count, objects=2 if self.split == "two objects" else 1)

    @property
    def fields(self) -> dict[str, Any]:
        """As sampling parameters."""
        return {
            "height": self.size,
            "width": self.size,
            "num_frames": self.frames,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
        }

    @property
    def file_name(self) -> str:
        """Of its verdicts. The count is not in it: a longer run goes on where a shorter one ended."""
        values = (self.split, self.seed, self.size, self.frames, self.steps, f"{self.guidance:g}")
        return "-".join(str(value).replace(" ", "_") for value in values) + ".jsonl"


def digest(model: str) -> str:
    """Of the model's weights: another model's verdicts are not this one's."""
    state, components = hashlib.sha256(), resolve_repo(model).components
    for name in ("text_encoder", "transformer", "vae"):
        for path in components[name].weight_files:
            state.update(path.read_bytes())
    return state.hexdigest()[:16]


# ---- In the processes ----

_generator: VideoGenerator | None = None


def _start(model: str) -> None:
    global _generator
    torch.set_num_threads(1)
    _generator = VideoGenerator.from_pretrained(model)


def draw(prompt: str, seed: int, fields: dict[str, Any]) -> torch.Tensor:
    """A clip by this process's generator: uint8 [T, H, W, 3]."""
    assert _generator is not None
    result = _generator.generate_video(
        prompt, seed=seed, save_video=False, return_frames=True, progress=lambda progress: None, **fields
    )
    assert not isinstance(result, list) and result.frames is not None
    return torch.from_numpy(np.stack(result.frames))


def judged(prompt: str, seed: int, fields: dict[str, Any], objects: int) -> list[tuple[str, ...]]:
    clip = draw(prompt, seed, fields)
    verdicts = (judge(clip),) if objects == 1 else judge_two(clip)
    return [astuple(verdict) for verdict in verdicts]


# ---- Outside ----


def pool(model: str) -> ProcessPoolExecutor:
    """One process a core, each with the model loaded and one thread."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=_start, initargs=(model,))


def _known(path: Path) -> dict[int, list[tuple[str, ...]]]:
    """The verdicts in `path` by the number of their prompt. A last line that was cut off is removed."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return dict(json.loads(line) for line in whole.splitlines())


def measure(
    executor: ProcessPoolExecutor, cells: Sequence[Cell], folder: Path
) -> Iterator[tuple[Cell, dict[str, float]]]:
    """Each cell's `accuracy`, in order; verdicts that are in `folder` are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        path, prompts = folder / cell.file_name, cell.prompts()
        known = _known(path)
        futures: dict[Future[list[tuple[str, ...]]], int] = {}
        for index, (scene, prompt) in enumerate(prompts):
            if index not in known:
                seed = 10_000 * cell.seed + index
                futures[executor.submit(judged, prompt, seed, cell.fields, len(scene.objects))] = index
        with path.open("a") as file:
            for future in as_completed(futures):
                known[futures[future]] = future.result()
                file.write(json.dumps([futures[future], future.result()]) + "\n")
                file.flush()
        given = [tuple(Verdict(*words) for words in known[index]) for index in range(len(prompts))]
        row = accuracy(given, [scene for scene, _ in prompts]) | {"clips": float(len(prompts))}
        logger.info("%s: %s", cell, {name: round(value, 3) for name, value in row.items()})
        yield cell, row
