"""`fastvideo models`, `inspect` and `verify`: tables."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from fastvideo.configs.registry import MODELS
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.utils import resolve

if TYPE_CHECKING:
    from fastvideo.models.loader.inspect import ComponentReport


def models(options: Namespace) -> int:
    """List what is registered, with the defaults."""
    rows = [("model", "width x height x frames", "fps", "steps", "guidance", "what, and where")]
    for entry in MODELS:
        sampling: SamplingParam = resolve(entry.sampling)()
        size = f"{sampling.width}x{sampling.height}x{sampling.num_frames}"
        numbers = (str(sampling.fps), str(sampling.num_inference_steps), f"{sampling.guidance_scale:g}")
        rows.append((entry.name, size, *numbers, entry.description))
        rows += [("", "", "", "", "", model_id) for model_id in entry.model_ids if model_id != entry.name]
    print(table(rows))
    return 0


def inspect(options: Namespace) -> int:
    """Show how a repo maps to components and where each weight goes; no weight is read."""
    from fastvideo.models.loader.inspect import inspect_repo

    repo = inspect_repo(
        options.model,
        quantization=options.quantization,
        text_encoder_quantization=options.text_encoder_quantization,
    )
    print(f"{repo.model}: {repo.pipeline_class}, registered as {repo.entry}")
    print(f"{repo.parameters:,} parameters, {repo.nbytes:,} bytes of weights\n")
    rows = [("component", "class", "is loaded by", "config", "parameters", "bytes", "in memory", "dtype",
             "weight files")]  # fmt: skip
    for component in repo.components:
        there = f"{component.library}.{component.class_name}"
        ours = component.model.replace(":", ".").removeprefix("fastvideo.models.") if component.model else "the library"
        files = component.weight_files
        rows.append((
            component.name, there, ours, component.config_file or "-", f"{component.parameters:,}",
            f"{component.nbytes:,}", f"{component.loaded:,}", ", ".join(component.dtypes) or "-",
            "-" if not files else files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more",
        ))  # fmt: skip
    print(table(rows))
    for component in repo.components:
        if component.weights:
            print(f"\n{component.name}\n{table(weight_rows(component))}")
    return 0


def weight_rows(component: "ComponentReport") -> list[Sequence[str]]:
    """Where the weights of a component go; names that differ in a number alone share a row."""
    groups: dict[tuple[str, ...], int] = {}
    for weight in component.weights:
        target = weight.target or "(not loaded)"
        if weight.parts > 1:
            target += f" [{weight.part + 1} of {weight.parts}]"
        names = (re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in (weight.name, target))
        key = (*names, "x".join(map(str, weight.shape)) or "scalar", weight.dtype)
        groups[key] = groups.get(key, 0) + 1
    return [("weight", "goes to", "shape", "dtype", "count"), *((*key, str(n)) for key, n in groups.items())]


def verify(options: Namespace) -> int:
    """Compare a model with the reference; 1 when a row does not pass."""
    from fastvideo.entrypoints.verify import HEADING, cells, verify

    rows = verify(options.model)
    print(table([HEADING, *map(cells, rows)]))
    return 0 if all(row.passed for row in rows) else 1


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of text; the first row is the heading."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
