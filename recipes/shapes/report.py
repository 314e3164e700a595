"""Measure the shipped model and write what was seen: `python -m recipes.shapes.report`.

Writes the table between the two marks in README.md and a contact sheet of 24 prompts, drawn at random, not chosen.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from fastvideo import SamplingParam, VideoGenerator
from fastvideo.models.loader.component_loader import load_component
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from recipes.shapes.evaluate import evaluate_generator, format_table, held_out_prompts, training_prompts
from recipes.shapes.train_vae import reconstruction_psnr

MARKS = ("<!-- shapes-t2v: begin -->", "<!-- shapes-t2v: end -->")
SHEET_PROMPTS, SHEET_FRAMES = 24, 5


def clips(generator: VideoGenerator, prompts: list[str], seed: int, **fields: Any) -> list[torch.Tensor]:
    """One clip, uint8 [T, H, W, 3], for each prompt; prompt number i has seed `seed + i`."""
    made = []
    for index, prompt in enumerate(prompts):
        result = generator.generate_video(
            prompt, seed=seed + index, save_video=False, return_frames=True, progress=lambda progress: None, **fields
        )
        assert not isinstance(result, list) and result.frames is not None
        made.append(torch.from_numpy(np.stack(result.frames)))
    return made


def sheet(rows: list[tuple[str, torch.Tensor]], path: Path) -> None:
    """A PNG with two columns of clips, each a caption over a row of frames."""
    size = rows[0][1].shape[1]
    width, height, gap = SHEET_FRAMES * (size + 2), size + 16, 10
    page = Image.new("RGB", (2 * width + 3 * gap, (len(rows) + 1) // 2 * (height + gap) + gap), (250, 250, 250))
    draw = ImageDraw.Draw(page)
    for index, (caption, clip) in enumerate(rows):
        x, y = gap + index % 2 * (width + gap), gap + index // 2 * (height + gap)
        draw.text((x, y), caption if len(caption) < 84 else caption[:81] + "...", fill=(40, 40, 40))
        for column, frame in enumerate(np.linspace(0, len(clip) - 1, SHEET_FRAMES).round().astype(int)):
            page.paste(Image.fromarray(clip[frame].numpy()), (x + column * (size + 2), y + 14))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)


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


def table(rows: dict[str, dict[str, float]], psnr: float, seconds: float, sampling: SamplingParam) -> str:
    """The Markdown between the marks."""
    names = ("background", "colour", "shape", "motion", "all")
    lines = [
        f"{sampling.width}x{sampling.height}, {sampling.num_frames} frames, {sampling.num_inference_steps} steps, "
        f"guidance {sampling.guidance_scale:g}; right in % of the clips, judged from the pixels:",
        "",
        "| prompts | " + " | ".join(names) + " | clips |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for name, row in rows.items():
        cells = " | ".join(f"{100 * row[column]:.1f}" for column in names)
        lines.append(f"| {name} | {cells} | {int(row['clips'])} |")
    lines += [
        "",
        f"The VAE reconstructs unseen clips at {psnr:.1f} dB. From process start to finished MP4: {seconds:.1f} s on "
        f"{torch.get_num_threads()} CPU core{'s' if torch.get_num_threads() > 1 else ''}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shapes-t2v")
    parser.add_argument("--prompts", type=int, default=200, help="unseen combinations to judge (and half as many seen)")
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--sheet", type=Path, default=Path("docs/images/shapes-t2v.png"))
    parser.add_argument("--print", action="store_true", dest="only_print", help="print, write nothing")
    options = parser.parse_args()
    sampling = SamplingParam.from_pretrained(options.model)
    generator = VideoGenerator.from_pretrained(options.model)
    splits = {
        "unseen combinations": held_out_prompts(options.prompts),
        "combinations from training": training_prompts(max(1, options.prompts // 2)),
    }
    rows = evaluate_generator(lambda prompts, seed: clips(generator, prompts, seed), splits)
    print(format_table(rows), file=sys.stderr)
    psnr = vae_psnr(options.model)
    text = table(rows, psnr, seconds_to_file(options.model), sampling)
    print(text)
    if options.only_print:
        return
    chosen = [held_out_prompts(200, seed=1)[i] for i in np.random.default_rng(1).permutation(200)[:SHEET_PROMPTS]]
    made = clips(generator, [prompt for _, prompt in chosen], seed=5000)
    sheet([(prompt, clip) for (_, prompt), clip in zip(chosen, made, strict=True)], options.sheet)
    readme = options.readme.read_text()
    if not all(mark in readme for mark in MARKS):
        raise ValueError(f"{options.readme}: must hold the marks {MARKS[0]} and {MARKS[1]}, the table goes between")
    block = f"{MARKS[0]}\n{text}\n{MARKS[1]}"
    options.readme.write_text(re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: block, readme, flags=re.S))


if __name__ == "__main__":
    main()
