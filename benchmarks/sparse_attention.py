"""What leaving keys out saves and costs, for docs/attention.md.

    python benchmarks/sparse_attention.py              both tables
    python benchmarks/sparse_attention.py --no-compile without compiled flex attention, which needs a C++ compiler

The first table is one call of attention: over all keys, over gathered blocks, and by compiled flex attention. The
second is the model in the package: time of denoising, and how close the video is to that of attention over all keys.
Times are of the CPU, the least of several, since other programs then count for less; run it with OMP_NUM_THREADS=1.
"""

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import flex_attention

from fastvideo import VideoGenerator
from fastvideo.attention.backends.blocks import flex_blocks, gathered_blocks
from fastvideo.attention.backends.sdpa import SDPABackend
from fastvideo.pipelines.pipeline_batch_info import Progress

ROUNDS = 5
BLOCKS, SIZE, HEADS, DIM = 48, 64, 4, 128
PROMPT = "a red circle moving left on a white background"
SPARSE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("VIDEO_SPARSE_ATTN", {"VSA_sparsity": 0.25}),
    ("VIDEO_SPARSE_ATTN", {"VSA_sparsity": 0.5}),
    ("VIDEO_SPARSE_ATTN", {"VSA_sparsity": 0.75}),
    ("VIDEO_SPARSE_ATTN", {"VSA_sparsity": 0.9}),
    ("SLIDING_TILE_ATTN", {"STA_window": (3, 3, 3), "STA_tile_size": (3, 4, 4)}),
    ("SLIDING_TILE_ATTN", {"STA_window": (3, 2, 2), "STA_tile_size": (3, 4, 4)}),
    ("SLIDING_TILE_ATTN", {"STA_window": (3, 1, 1), "STA_tile_size": (3, 4, 4)}),
    ("VMOBA_ATTN", {"moba_config": {"moba_threshold": 0.75}}),
    ("VMOBA_ATTN", {"moba_config": {"moba_threshold": 0.5}}),
    ("VMOBA_ATTN", {"moba_config": {"moba_threshold": 0.25}}),
)


def quickest(run: Callable[[], object]) -> float:
    """Least CPU seconds of `run`, once it has run."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return min(seconds)


def kernels(dtype: torch.dtype, compiled: bool) -> None:
    """One call, `BLOCKS` blocks of `SIZE` tokens."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, HEADS, BLOCKS, SIZE, DIM, generator=generator).to(dtype).unbind()
    flat = [x.flatten(2, 3).transpose(1, 2) for x in (q, k, v)]
    dense = SDPABackend()
    exact = quickest(lambda: dense(*flat))
    print(f"\n{BLOCKS * SIZE} tokens, {HEADS} heads of {DIM}, {dtype}: all keys {exact * 1e3:.0f} ms")
    flex = torch.compile(flex_attention, dynamic=False) if compiled else None
    print("| keys seen | gathered | flex attention |\n|---|---|---|")
    for share in (1.0, 0.5, 0.25, 0.1):
        kept = max(1, round(share * BLOCKS))
        best = torch.rand(1, HEADS, BLOCKS, BLOCKS, generator=generator).topk(kept, dim=-1).indices
        allowed = torch.zeros(1, HEADS, BLOCKS, BLOCKS, dtype=torch.bool).scatter_(-1, best, True)
        ours = quickest(lambda allowed=allowed: gathered_blocks(q, k, v, allowed, None))  # type: ignore[misc]
        theirs = "-"
        if flex is not None:
            found = quickest(lambda allowed=allowed: flex_blocks(flex, q, k, v, allowed, None))  # type: ignore[misc]
            theirs = f"{found * 1e3:.0f} ms"
        print(f"| {share:.0%} | {ours * 1e3:.0f} ms | {theirs} |", flush=True)


def videos(backend: str, options: dict[str, Any], request: dict[str, Any]) -> tuple[np.ndarray, float]:
    """The frames of `PROMPT` by the model in the package, and the least CPU seconds of a denoising step."""
    times: list[float] = []
    taken: list[float] = []

    def listen(progress: Progress) -> None:
        now = time.process_time()
        if progress.stage == "denoising" and progress.step > 1:
            taken.append(now - times[-1])
        times.append(now)

    with VideoGenerator.from_pretrained(
        "shapes-t2v", device="cpu", precision="fp32", attention_backend=backend, **options
    ) as generator:
        result = generator.generate_video(PROMPT, **request, save_video=False, return_frames=True, progress=listen)
    return np.stack(result.frames).astype(np.float64), min(taken)


def model(request: dict[str, Any]) -> None:
    """The second table."""
    exact, seconds = videos("TORCH_SDPA", {}, request)
    print(f"\nshapes-t2v, {request}: all keys {seconds:.2f} s a step")
    print("| backend | options | time of a step | PSNR |\n|---|---|---|---|")
    for backend, options in SPARSE:
        made, taken = videos(backend, options, request)
        error = float(np.square(made - exact).mean())
        psnr = "the same" if error == 0 else f"{10 * np.log10(255**2 / error):.1f} dB"
        print(f"| {backend} | {options} | {taken / seconds:.2f} | {psnr} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-compile", action="store_true", help="leave compiled flex attention out")
    parser.add_argument("--no-kernels", action="store_true", help="leave the first table out")
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--side", type=int, default=192, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with torch.no_grad():
        for dtype in () if options.no_kernels else (torch.float32, torch.bfloat16):
            kernels(dtype, not options.no_compile)
    side = options.side
    model({"height": side, "width": side, "num_frames": options.frames, "num_inference_steps": options.steps})


if __name__ == "__main__":
    main()
