"""`fastvideo models`, `inspect` and `verify`: tables."""

from collections.abc import Sequence

from jsonargparse import Namespace

from fastvideo.configs.registry import MODELS
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.utils import resolve


def models(options: Namespace) -> int:
    """List what is registered, with the defaults."""
    rows = [("model", "width x height x frames", "fps", "steps", "guidance", "what, and where")]
    for entry in MODELS:
        sampling: SamplingParam = resolve(entry.sampling)()
        size = f"{sampling.width}x{sampling.height}x{sampling.num_frames}"
        where = "; ".join((entry.description, *entry.model_ids))
        numbers = (str(sampling.fps), str(sampling.num_inference_steps), f"{sampling.guidance_scale:g}")
        rows.append((entry.name, size, *numbers, where))
    print(table(rows))
    return 0


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of text; the first row is the heading."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
