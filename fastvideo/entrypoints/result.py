"""What a generation gives back."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastvideo.pipelines.pipeline_batch_info import ForwardBatch, written

Frames = list[npt.NDArray[np.uint8]]
"""[H, W, 3] each, RGB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationResult(Mapping[str, Any]):
    """One video. Everything is there as an attribute and under its name as a key."""

    frames: list[npt.NDArray[np.uint8]] | None
    """T arrays [H, W, 3], RGB; None unless `return_frames`."""
    samples: torch.Tensor | None
    """[1, 3, T, H, W] fp32 in [0, 1] on the CPU; None unless `return_frames`."""
    audio: torch.Tensor | None
    """None: the model makes no sound."""
    audio_sample_rate: int | None
    """Samples a second of `audio`."""
    video_path: str | None
    """The file, or the pattern of the PNGs, such as "folder/%04d.png"; None unless `save_video`."""
    prompts: str
    """The prompt that the video was made from."""
    seed: int
    """Of the noise; the videos of one call share it."""
    size: tuple[int, int, int]
    """Height, width, frames."""
    generation_time: float
    """Seconds of the call that made the video, without writing the file."""
    stage_times: dict[str, float]
    """Seconds of each stage of that call."""
    peak_memory_mb: float
    """The most memory that the device held, in MiB."""
    block_runs: int
    """How often a block of the diffusion transformer ran in that call."""
    saved_block_runs: int
    """How often more it would have without step caches and ways to compute guidance less often."""
    batch_size: int
    """How many requests were denoised together, this one among them."""

    def __getitem__(self, key: str) -> Any:
        if key not in NAMES:
            raise KeyError(f"{key!r}: a result has {', '.join(NAMES)}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)

    def __repr__(self) -> str:
        # frames and samples would fill the screen
        shown = ("prompts", "seed", "size", "generation_time", "video_path")
        return f"GenerationResult({', '.join(f'{name}={self[name]!r}' for name in shown)})"


NAMES = tuple(field.name for field in dataclasses.fields(GenerationResult))


def to_frames(video: torch.Tensor) -> list[npt.NDArray[np.uint8]]:
    """T arrays [H, W, 3] of `video` [3, T, H, W] in [0, 1], rounded to the nearest of 256 levels."""
    levels = (video * 255).round().to(torch.uint8)
    return list(levels.permute(1, 2, 3, 0).contiguous().numpy())


def results_of(
    batch: ForwardBatch, clips: Sequence[Frames], files: Sequence[Path], seconds: float
) -> list[GenerationResult]:
    """The results of a request.

    Args:
        batch: after the last stage.
        clips: the frames of its videos; none on a rank that has no videos.
        files: of its videos; none when they are not saved.
        seconds: that it took.
    """
    runs, sampling, results = written(batch.block_runs, "block_runs"), batch.sampling, []
    for number in range(batch.size):
        results.append(
            GenerationResult(
                frames=clips[number] if sampling.return_frames else None,
                samples=written(batch.video, "video")[number, None] if sampling.return_frames else None,
                audio=None,
                audio_sample_rate=None,
                video_path=str(files[number]) if files else None,
                prompts=batch.prompts[0],
                seed=sampling.seed,
                size=(sampling.height, sampling.width, sampling.num_frames),
                generation_time=seconds,
                stage_times=dict(batch.stage_times),
                peak_memory_mb=batch.peak_memory / 2**20,
                block_runs=runs.made,
                saved_block_runs=runs.saved,
                batch_size=batch.together,
            )
        )
    return results
