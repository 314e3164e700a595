"""What each way to quantize the model in the package saves, and what it costs in quality.

    python benchmarks/quantization.py                      the tables, printed
    python benchmarks/quantization.py --output docs/quantization.md   the same, between the marks in that page
    python benchmarks/quantization.py --prompts 8          more clips
    python benchmarks/quantization.py --wide               a block of Wan 2.1 1.3B in bf16 and in INT8, in turns

Clips are made at the model's defaults, in fp32 unless it says otherwise, from the same noise. PSNR is to the clip of
whole weights in fp32. GGUF files are written by the `gguf` package in the formats that it quantizes to; those of K,
which it only reads, have no row. The second table quantizes some layers of the transformer alone, and compares what it
predicts for random inputs: the reason for which of them are kept whole.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from fastvideo import VideoGenerator
from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig
from fastvideo.configs.registry import SHIPPED_MODEL, SHIPPED_NAME
from fastvideo.entrypoints.cli.report import table
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.layers.quantization import quantizer
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.loader.component_loader import blueprint, load_component
from fastvideo.models.loader.gguf_source import with_weights
from fastvideo.models.loader.quantize import quantized_layers
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.loader.weights import dtype_of
from fastvideo.platforms import DTYPES
from recipes.shapes.captions import LABELS

METHODS = ("int8", "int8_dynamic", "fp8", "nf4")
GGUF_KINDS = ("Q8_0", "Q5_1", "Q4_0")
GROUPS = {
    "the blocks": "blocks", "`time_embedder`": "time_embedder", "`time_proj`": "time_proj",
    "`text_embedder`": "text_embedder", "`proj_out`": "proj_out",
}  # fmt: skip
"""Layers of the transformer, by how their names begin."""
BEGIN, END = "<!-- quantization: begin -->", "<!-- quantization: end -->"


def prompts(count: int) -> list[str]:
    """That many captions, which take turns with all words."""
    words = [[word for word in LABELS[name] if word] for name in ("colour", "shape", "motion", "background")]
    picked = [[some[number % len(some)] for some in words] for number in range(count)]
    return [f"a {colour} {shape} {motion} on a {ground} background" for colour, shape, motion, ground in picked]


def write_files(kind: str, folder: Path) -> dict[str, str]:
    """GGUF files of the model's transformer and text encoder whose matrices are in `kind`, as options."""
    from tests import tiny_gguf

    options = {}
    for component, architecture in (("transformer", "wan"), ("text_encoder", "t5encoder")):
        path = folder / f"{component}-{kind}.gguf"
        state, _ = tiny_gguf.state_of(SHIPPED_MODEL, component)
        tiny_gguf.write_gguf(path, state, tiny_gguf.mixed(kind), architecture)
        options[f"{component}_path"] = str(path)
    return options


def weight_bytes(options: dict[str, Any]) -> list[int]:
    """Of transformer and text encoder in memory."""
    args = FastVideoArgs.from_kwargs(SHIPPED_NAME, **options)
    repo = with_weights(resolve_repo(SHIPPED_NAME), args.weight_paths)
    dtype = DTYPES["bf16" if args.precision == "bf16" else "fp32"]
    return [blueprint(repo.components[name]).nbytes_in(dtype, args) for name in ("transformer", "text_encoder")]


def step_seconds(ways: dict[str, dict[str, Any]], rounds: int = 9) -> dict[str, float]:
    """The least seconds of a prediction of each way's transformer; they take turns, so that all meet the same load."""
    models: dict[str, nn.Module] = {}
    for name, options in ways.items():
        args = FastVideoArgs.from_kwargs(SHIPPED_NAME, **options)
        source = with_weights(resolve_repo(SHIPPED_NAME), args.weight_paths).components["transformer"]
        dtype = DTYPES["bf16" if args.precision == "bf16" else "fp32"]
        models[name] = load_component(source, dtype=dtype, quantization=args.quantization)
    latents, text, timestep = torch.randn(2, 8, 5, 12, 12), torch.randn(2, 12, 128), torch.full((2,), 500.0)
    found = dict.fromkeys(ways, math.inf)
    for _ in range(rounds):
        for name, model in models.items():
            started = time.perf_counter()
            with torch.inference_mode():
                model(latents, timestep, text=text, text_padding=500)
            found[name] = min(found[name], time.perf_counter() - started)
    return found


def clips(texts: list[str], options: dict[str, Any]) -> list[torch.Tensor]:
    """The clip of each text."""
    videos = []
    with VideoGenerator.from_pretrained(SHIPPED_NAME, device="cpu", **options) as generator:
        for text in texts:
            result = generator.generate_video(text, save_video=False, return_frames=True, progress=lambda step: None)
            assert not isinstance(result, list) and result.samples is not None
            videos.append(result.samples)
    return videos


def psnr(found: torch.Tensor, expected: torch.Tensor) -> float:
    """In dB, of values in [0, 1]."""
    mean = float((found - expected).square().mean())
    return math.inf if mean == 0 else -10 * math.log10(mean)


def clip_rows(count: int) -> list[tuple[str, ...]]:
    """The first table."""
    texts = prompts(count)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, dict[str, Any]] = {"whole, fp32": {}, "whole, bf16": {"precision": "bf16"}}
        ways |= {f"`{name}`": {"quantization": name, "text_encoder_quantization": name} for name in METHODS}
        ways |= {f"GGUF {kind}": write_files(kind, Path(folder)) for kind in GGUF_KINDS}
        seconds = step_seconds(ways)
        rows: list[tuple[str, ...]] = []
        exact: list[torch.Tensor] = []
        for name, options in ways.items():
            videos = clips(texts, options)
            exact = exact or videos
            found = [psnr(*pair) for pair in zip(videos, exact, strict=True)]
            dit, encoder = weight_bytes(options)
            quality = ("-", "-") if videos is exact else (f"{statistics.mean(found):.1f}", f"{min(found):.1f}")
            times = f"{1e3 * seconds[name]:.0f}", f"{seconds[name] / seconds['whole, fp32']:.2f}"
            rows.append((name, f"{dit / 1e6:.1f}", f"{encoder / 1e6:.2f}", *quality, *times))
            print(*rows[-1], flush=True)
    return rows


def group_rows() -> list[tuple[str, ...]]:
    """The second table."""
    source = resolve_repo(SHIPPED_MODEL).components["transformer"]
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(3, 8, 5, 12, 12, generator=generator), torch.randn(3, 12, 128, generator=generator)
    timesteps = torch.tensor([950.0, 500.0, 50.0])

    def predict(model: nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            prediction: torch.Tensor = model(latents, timesteps, text=text, text_padding=500)
            return prediction

    exact_model = load_component(source)
    exact, total = predict(exact_model), sum(x.numel() for x in exact_model.parameters())
    rows = []
    for group, prefix in GROUPS.items():
        errors, share = [], 0
        for method in METHODS:
            model = load_component(source)
            layers = [
                layer for name, layer in model.named_modules()
                if f"{name}.".startswith(f"{prefix}.") and isinstance(layer, nn.Linear)
            ]  # fmt: skip
            share = sum(layer.weight.numel() for layer in layers)
            for layer in layers:
                quantizer(method)(layer)
            errors.append(f"{float((predict(model) - exact).norm() / exact.norm()):.1e}")
        rows.append((group, f"{100 * share / total:.1f}", *errors))
        print(*rows[-1], flush=True)
    return rows


@torch.no_grad()
def wide_rows(rounds: int = 5) -> list[tuple[str, ...]]:
    """One block of Wan 2.1 1.3B over 3,120 tokens with random weights, in turns: median seconds, how many times as fast
    as bf16, and the relative error to it."""
    arch = WanVideoArchConfig(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=1, text_dim=64)
    states: dict[str, Any] = {}
    models = {}
    for method in ("bf16", "int8_dynamic"):
        torch.manual_seed(0)
        models[method] = model = WanTransformer3DModel(arch).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.data = parameter.to(dtype_of(name, torch.bfloat16, arch.keep_fp32))
        if method != "bf16":
            for layer in quantized_layers(model, arch).values():
                quantizer(method)(layer)
    latents, text = torch.randn(1, arch.in_channels, 2, 60, 104), torch.randn(1, 128, 64).bfloat16()
    seconds: dict[str, list[float]] = {method: [] for method in models}
    for _ in range(rounds + 1):
        for method, model in models.items():
            started = time.perf_counter()
            states[method] = model(latents, torch.full((1,), 500.0), text=text).float()
            seconds[method].append(time.perf_counter() - started)
    base, exact = statistics.median(seconds["bf16"][1:]), states["bf16"]
    return [
        (method, f"{(middle := statistics.median(times[1:])):.3f}", f"{base / middle:.2f}",
         f"{float((states[method] - exact).norm() / exact.norm()):.1e}")
        for method, times in seconds.items()
    ]  # fmt: skip


def markdown(rows: list[tuple[str, ...]], heading: tuple[str, ...]) -> str:
    """A table of a page."""
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4, metavar="N", help="clips of each way")
    parser.add_argument("--output", metavar="PAGE", help="write the tables between the marks of this page")
    parser.add_argument(
        "--wide", action="store_true", help="a block of Wan 2.1 1.3B in bf16 and INT8, and nothing else"
    )
    options = parser.parse_args()
    if options.wide:
        print(table([("weights", "seconds", "times as fast", "error"), *wide_rows()]))
        return
    clip_heading = (
        "weights", "transformer, MB", "text encoder, MB", "PSNR, dB", "worst", "ms a step", "times fp32"
    )  # fmt: skip
    group_heading = ("quantized alone", "of the weights, %", *(f"`{name}`" for name in METHODS))
    groups, found = group_rows(), clip_rows(options.prompts)
    print(table([clip_heading, *found]), table([group_heading, *groups]), sep="\n\n")
    if options.output:
        page = Path(options.output)
        before, rest = page.read_text(encoding="utf-8").split(BEGIN)
        threads = torch.get_num_threads()
        cores = f"{threads} CPU core{'s' if threads > 1 else ''}"
        text = (
            f"{options.prompts} clips at the defaults, on {cores}, torch {torch.__version__}:\n\n"
            f"{markdown(found, clip_heading)}\n\n"
            "What the transformer predicts, relative error with some layers quantized alone:\n\n"
            f"{markdown(groups, group_heading)}\n"
        )
        page.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
