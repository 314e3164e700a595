"""Measure the shipped model and write what was seen: `make evaluate`.

Writes the tables between the two marks in README.md, and a contact sheet of 24 prompts that are drawn at random, not
chosen. It may be killed at any moment and goes on where it was.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from fastvideo.models.loader.component_loader import load_component
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from recipes.shapes.evaluate import held_out_prompts, judge
from recipes.shapes.measure import Cell, digest, draw, measure, pool
from recipes.shapes.train_vae import reconstruction_psnr

MARKS = ("<!-- shapes-t2v: begin -->", "<!-- shapes-t2v: end -->")
SHEET_SINGLE, SHEET_PAIRS, SHEET_FRAMES = 16, 8, 5
COLUMNS = ("background", "colour", "shape", "motion", "all")
STEPS, GUIDANCE, SEEDS = (10, 20, 40), (1.0, 3.0, 5.0), 5
SIZES = ((96, 25), (160, 25), (192, 25), (128, 9), (128, 49))
"""Other pixels a side, and other numbers of frames."""
OUTSIDE = (
    "a dog running through a park",
    "a hexagon moving left on a teal background",
    "a cyan circle moving up on a white background",
    "a red circle exploding on a white background",
    "a green square moving left on a brown background",
    "three blue stars on a black background",
    "",
)
"""Prompts with something the model has no word for."""

Row = dict[str, float]


def sheet(rows: list[tuple[str, torch.Tensor]], path: Path) -> None:
    """A PNG with two columns of clips, each a caption over a row of frames."""
    size = rows[0][1].shape[1]
    width, height, gap = SHEET_FRAMES * (size + 2), size + 16, 10
    page = Image.new("RGB", (2 * width + 3 * gap, (len(rows) + 1) // 2 * (height + gap) + gap), (250, 250, 250))
    pen = ImageDraw.Draw(page)
    for index, (caption, clip) in enumerate(rows):
        x, y = gap + index % 2 * (width + gap), gap + index // 2 * (height + gap)
        pen.text((x, y), caption if len(caption) < 104 else caption[:101] + "...", fill=(40, 40, 40))
        for column, frame in enumerate(np.linspace(0, len(clip) - 1, SHEET_FRAMES).round().astype(int)):
            page.paste(Image.fromarray(clip[frame].numpy()), (x + column * (size + 2), y + 14))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)


def sheet_prompts() -> list[str]:
    """The captions of the sheet: a fixed draw from unseen combinations, of one object and of two."""
    single, pairs = held_out_prompts(200, seed=1), held_out_prompts(200, seed=1, objects=2)
    order = np.random.default_rng(1).permutation(200)
    return [single[i][1] for i in order[:SHEET_SINGLE]] + [pairs[i][1] for i in order[:SHEET_PAIRS]]


def seconds_to_file(model: str) -> float:
    """Median wall seconds of three runs from process start to finished MP4."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(3):
            started = time.perf_counter()
            command = [
                sys.executable, "-m", "fastvideo.entrypoints.cli", "generate",
                "a blue star bouncing on a pink background",
                "--model", model, "--output", f"{folder}/{number}.mp4",
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
    return sorted(seconds)[1]


@torch.no_grad()
def vae_psnr(model: str) -> float:
    """Mean PSNR in dB of the model's VAE over 48 unseen clips."""
    source = resolve_repo(model).components["vae"]
    vae = load_component(source, dtype=torch.float32, device=torch.device("cpu"))
    assert isinstance(vae, AutoencoderKLWan)
    return reconstruction_psnr(vae, clips=48)


# ---- Tables ----


def markdown(first: str, names: tuple[str, ...], rows: dict[str, list[str]]) -> list[str]:
    """The lines of a table."""
    head = [f"| {first} | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    return [*head, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())]


def percents(row: Row, names: tuple[str, ...] = COLUMNS) -> list[str]:
    return [f"{100 * row[name]:.1f}" for name in names]


def main_table(measured: dict[Cell, Row], count: int) -> list[str]:
    """The defaults: unseen combinations, two objects, combinations from training."""
    names = {
        Cell("unseen", count): "one object, unseen combinations",
        Cell("two objects", count): "two objects, an unseen combination among them",
        Cell("seen", max(1, count // 2)): "one object, combinations from training",
    }
    columns = (*COLUMNS, "whole")
    rows = {name: [*percents(measured[cell], columns), str(cell.count)] for cell, name in names.items()}
    return markdown("prompts", (*COLUMNS, "every object all right", "clips"), rows)


def grid_table(measured: dict[Cell, Row], count: int) -> list[str]:
    """Other numbers of steps and strengths of guidance."""
    cells = {
        f"{steps} steps, guidance {guidance:g}": Cell(count=count, steps=steps, guidance=guidance)
        for steps in STEPS
        for guidance in GUIDANCE
    }
    return markdown("unseen combinations", COLUMNS, {name: percents(measured[cell]) for name, cell in cells.items()})


def seed_table(measured: dict[Cell, Row], count: int) -> list[str]:
    """The mean over five seeds of the noise, and their standard deviation."""
    rows = [measured[Cell(count=count, seed=seed)] for seed in range(SEEDS)]
    values = np.array([[100 * row[name] for name in COLUMNS] for row in rows])
    cells = {
        "mean": [f"{value:.1f}" for value in values.mean(axis=0)],
        "standard deviation": [f"{value:.1f}" for value in values.std(axis=0, ddof=1)],
    }
    return markdown(f"{SEEDS} seeds", COLUMNS, cells)


def size_table(measured: dict[Cell, Row], count: int) -> list[str]:
    """Other sizes and lengths."""
    cells = {f"{size}x{size}, {frames} frames": Cell(count=count, size=size, frames=frames) for size, frames in SIZES}
    return markdown("unseen combinations", COLUMNS, {name: percents(measured[cell]) for name, cell in cells.items()})


def outside_table(executor: ProcessPoolExecutor) -> list[str]:
    """What prompts with unknown words give, as the judge names it."""
    futures = [executor.submit(draw, prompt, 77, Cell().fields) for prompt in OUTSIDE]
    rows = {}
    for prompt, future in zip(OUTSIDE, futures, strict=True):
        seen = judge(future.result())
        rows[f'"{prompt}"'] = [f"{seen.colour} {seen.shape}, {seen.motion}, on {seen.background}"]
    return markdown("outside the vocabulary", ("what is seen",), rows)


def cells_of(count: int, others: int) -> list[Cell]:
    """Everything that is measured, what matters most first: the main table with `count` clips a row."""
    main = [Cell("unseen", count), Cell("two objects", count), Cell("seen", max(1, count // 2))]
    grid = [Cell(count=others, steps=steps, guidance=guidance) for steps in STEPS for guidance in GUIDANCE]
    seeds = [Cell(count=others, seed=seed) for seed in range(SEEDS)]
    sizes = [Cell(count=others, size=size, frames=frames) for size, frames in SIZES]
    return list(dict.fromkeys([*main, *sizes, *seeds, *grid]))


def write_readme(readme: Path, lines: list[str]) -> None:
    """Put `lines` between the marks. Raises `ValueError` where they are missing."""
    text = readme.read_text()
    if not all(mark in text for mark in MARKS):
        raise ValueError(f"{readme}: must hold the marks {MARKS[0]} and {MARKS[1]}, the tables go between")
    block = "\n".join([MARKS[0], *lines, MARKS[1]])
    readme.write_text(re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: block, text, flags=re.S))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shapes-t2v")
    parser.add_argument("--prompts", type=int, default=200, help="clips a row (half as many of seen combinations)")
    parser.add_argument("--others", type=int, help="clips a row of the tables after the first: as many by default")
    parser.add_argument("--work", type=Path, default=Path(".work/evaluate"), help="where verdicts are kept")
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--sheet", type=Path, default=Path("docs/images/shapes-t2v.png"))
    parser.add_argument("--main", action="store_true", help="the first table alone; print it, write nothing")
    options = parser.parse_args()
    count, others = options.prompts, options.prompts if options.others is None else options.others
    folder = options.work / digest(options.model)
    with pool(options.model) as executor:
        measured = dict(measure(executor, cells_of(count, others)[: 3 if options.main else None], folder))
        lines = main_table(measured, count)
        if options.main:
            print("\n".join(lines))
            return
        prompts = sheet_prompts()
        made = [executor.submit(draw, prompt, 5000 + i, Cell().fields) for i, prompt in enumerate(prompts)]
        sheet([(prompt, clip.result()) for prompt, clip in zip(prompts, made, strict=True)], options.sheet)
        outside = outside_table(executor)
    default = Cell()
    lines = [
        f"{default.size}x{default.size}, {default.frames} frames, {default.steps} steps, guidance "
        f"{default.guidance:g}; right in % of the objects, judged from the pixels:",
        "",
        *lines,
        "",
        f"The VAE reconstructs unseen clips at {vae_psnr(options.model):.1f} dB. From process start to finished MP4: "
        f"{seconds_to_file(options.model):.1f} s on {torch.get_num_threads()} CPU cores.",
        "",
        f"Other sizes and lengths, seeds, steps and guidance, {others} clips a row:",
    ]
    for table in (size_table(measured, others), seed_table(measured, others), grid_table(measured, others), outside):
        lines += ["", *table]
    write_readme(options.readme, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
