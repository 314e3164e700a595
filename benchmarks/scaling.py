"""How the time of a denoising step falls with the number of devices: bytes counted, compute measured, links modelled.

    python benchmarks/scaling.py --count                    bytes that real processes send, beside the formulas
    python benchmarks/scaling.py --measure                  the compute rate of a block on the device that is here
    python benchmarks/scaling.py --tflops 298 --copy 4 --plot P.png
                                                            step time and efficiency on 1 to 64 devices, as a plot

The model of a step: each device computes its share of the FLOPs at the rate of one device; what it sends takes bytes
over bandwidth, and a latency a message. Ulysses, tensor-parallel sums and the last gather are waited for; a ring's keys
and values travel while attention computes, so only what takes longer than that counts; merging its blocks reads and
writes the output once more for each. Links are the same between all devices: a machine with fewer NVLink devices than
the layout needs is worse than its line.
"""

import argparse
import itertools
import math
import multiprocessing
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvideo.configs.models.base import TransformerShape
from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig
from fastvideo.distributed.cost import StepShape, bytes_sent
from fastvideo.distributed.layout import Layout

TEXT = 512
SIZES = {
    "Wan2.1-T2V-1.3B": WanVideoArchConfig(num_attention_heads=12, num_layers=30, ffn_dim=8960),
    "Wan2.1-T2V-14B": WanVideoArchConfig(),
}
GRID = (21, 60, 104)
"""Latents of 480x832x81."""


@dataclass(frozen=True)
class Link:
    """How devices are connected: bytes a second that one device sends, and seconds before the first arrives."""

    name: str
    bandwidth: float
    latency: float


LINKS = (
    Link("NVLink (450 GB/s)", 450e9, 5e-6),
    Link("PCIe 5 x16 (50 GB/s)", 50e9, 10e-6),
    Link("100 Gb Ethernet (12 GB/s)", 12e9, 30e-6),
)


def flops(arch: WanVideoArchConfig, tokens: int) -> tuple[float, float]:
    """Of all blocks on a sequence: of the linear layers and cross-attention, and of self-attention."""
    width = arch.hidden_size
    # query, key, value, output; query and output of cross-attention; the perceptron
    linear = 2 * tokens * (6 * width**2 + 2 * width * arch.ffn_dim) + 4 * TEXT * width**2 + 4 * tokens * TEXT * width
    return arch.num_layers * float(linear), arch.num_layers * 4.0 * tokens**2 * width


def step_shape(shape: TransformerShape) -> StepShape:
    """For the bytes, in bf16."""
    patch = shape.channels * math.prod(shape.patch_size)
    latents = shape.channels * math.prod(GRID)
    return StepShape(
        layers=shape.layers, hidden=shape.hidden, tokens=shape.tokens(GRID), text=TEXT, patch=patch, latents=latents
    )


@dataclass(frozen=True)
class Device:
    """FLOP/s and bytes a second (a copy, reads and writes counted) of one device."""

    rate: float
    copy: float


def step_seconds(arch: WanVideoArchConfig, layout: Layout, link: Link, device: Device) -> float:
    """Of one guided step."""
    shape = arch.transformer_shape
    linear, attention = (
        x * (2 // layout.cfg) / (layout.tp * layout.sp) / device.rate for x in flops(arch, shape.tokens(GRID))
    )
    sent = bytes_sent(step_shape(shape), layout)
    predictions = 2 // layout.cfg
    messages = {
        "ulysses": 2 * shape.layers * predictions, "tp": 7 * shape.layers * predictions, "sp": predictions, "cfg": 1,
    }  # fmt: skip
    waited = sum(
        count / link.bandwidth + messages[group] * link.latency for group, count in sent.items() if group != "ring"
    )
    ring = sent["ring"] / link.bandwidth + (layout.ring - 1) * shape.layers * predictions * link.latency
    # read two outputs and write one, all fp32, for each block after the first
    outputs = predictions * shape.layers * shape.tokens(GRID) / layout.sp * shape.hidden / layout.tp * 4
    merging = 3 * outputs * (layout.ring - 1) / device.copy
    return linear + max(attention, ring if layout.ring > 1 else 0.0) + merging + waited


def layouts(arch: WanVideoArchConfig, devices: int) -> list[Layout]:
    """All that `devices` can have, without FSDP."""
    heads, found = arch.num_attention_heads, []
    for cfg, tp, ulysses in itertools.product((1, 2), *[[2**n for n in range(7)]] * 2):
        ring, rest = divmod(devices, cfg * tp * ulysses)
        fits = arch.ffn_dim % tp == 0 and heads % (tp * ulysses) == 0
        if ring >= 1 and not rest and fits:
            found.append(Layout(cfg=cfg, tp=tp, ulysses=ulysses, ring=ring))
    return found


def measured_rate(device: str, dtype: torch.dtype, tokens: int) -> float:
    """FLOP/s of a block of 14B's width over `tokens` tokens: the median of five runs."""
    from fastvideo.models.dits.wanvideo import WanBlock, WanContext, rotary_table

    arch = WanVideoArchConfig(num_layers=1)
    block = WanBlock(arch).to(device, dtype)
    width = arch.hidden_size
    context = WanContext(
        torch.zeros(1, 6, width, device=device), torch.zeros(1, width, device=device, dtype=dtype),
        torch.randn(1, TEXT, width, device=device, dtype=dtype), None,
        rotary_table((1, 1, tokens), arch.attention_head_dim, torch.device(device)), None, grid=(1, 1, tokens),
    )  # fmt: skip
    x = torch.randn(1, tokens, width, device=device, dtype=dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(6):
            started = time.perf_counter()
            float(block(x, context).sum())  # waits for the device
            seconds.append(time.perf_counter() - started)
    return sum(flops(arch, tokens)) / sorted(seconds[1:])[2]


def count() -> None:
    """Run a small transformer on two and four processes, and print the bytes sent beside the formulas."""
    import tempfile

    from tests.distributed.processes import Processes
    from tests.distributed.test_traffic import SHAPE, step
    from tests.tiny_repos import make_wan_repo

    sizes = {"num_attention_heads": 4, "attention_head_dim": 12}
    print(f"{'layout':24} {'counted':>10} {'formula':>10}")
    with tempfile.TemporaryDirectory() as folder:
        repo = make_wan_repo(Path(folder) / "repo", transformer=sizes, text_encoder={"num_heads": 4})
        for size in (2, 4):
            processes = Processes(size)
            arch = WanVideoArchConfig(num_attention_heads=4, attention_head_dim=12, ffn_dim=100)
            for layout in layouts(arch, size):
                counted = {sum(sent.values()) for sent in processes.run(step, repo, layout)}
                formula = sum(bytes_sent(SHAPE, layout).values())
                print(f"{layout!s:24} {'/'.join(map(str, sorted(counted))):>10} {formula:>10}")
            processes.close()


def table(device: Device) -> list[tuple[str, str, int, Layout, float, float]]:
    """Model, link, devices, the fastest layout, seconds of a step, and the share of a perfect division."""
    rows = []
    for name, arch in SIZES.items():
        alone = sum(flops(arch, arch.transformer_shape.tokens(GRID))) * 2 / device.rate
        for link in LINKS:
            for devices in (2**n for n in range(7)):
                best = min(layouts(arch, devices), key=lambda one: step_seconds(arch, one, link, device))
                seconds = step_seconds(arch, best, link, device)
                rows.append((name, link.name, devices, best, seconds, alone / devices / seconds))
    return rows


def plot(rows: list[tuple[str, str, int, Layout, float, float]], path: Path, rate: float) -> None:
    """Step time over devices, a panel a model and a line a link."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(SIZES), figsize=(10, 4), layout="constrained")
    for panel, name in zip(panels, SIZES, strict=True):
        for link in LINKS:
            own: list[Any] = [row for row in rows if row[:2] == (name, link.name)]
            panel.plot([row[2] for row in own], [row[4] for row in own], marker="o", label=link.name)
        first = next(row for row in rows if row[0] == name)
        panel.plot([1, 64], [first[4], first[4] / 64], "k:", label="perfect division")
        panel.set(xscale="log", yscale="log", title=f"{name}, 480x832x81", xlabel="devices", ylabel="seconds a step")
        panel.set_xticks([2**n for n in range(7)], [str(2**n) for n in range(7)])
        panel.grid(True, which="both", alpha=0.2)
        panel.legend()
    figure.suptitle(f"modelled: {rate / 1e12:.0f} TFLOP/s a device, guided step, best layout at each point")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="count bytes on real processes")
    parser.add_argument("--measure", action="store_true", help="measure the compute rate of this device")
    parser.add_argument("--tokens", type=int, default=3120, help="with --measure: length of the sequence")
    parser.add_argument("--tflops", type=float, help="rate of a device; measured when not given")
    parser.add_argument("--copy", type=float, default=4.0, metavar="TB/S", help="copy rate of a device (default: 4)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw the table")
    options = parser.parse_args()
    if options.count:
        count()
        return
    rate = options.tflops * 1e12 if options.tflops else None
    if rate is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        rate = measured_rate(device, torch.bfloat16, options.tokens)
        print(f"{device}: {rate / 1e12:.2f} TFLOP/s in a block of 14B's width, {options.tokens} tokens, bf16")
        if options.measure:
            return
    rows = table(Device(rate, options.copy * 1e12))
    print(f"{'model':16} {'link':26} {'devices':>7}  {'layout':28} {'s a step':>9} {'efficiency':>10}")
    for name, link, devices, layout, seconds, share in rows:
        print(f"{name:16} {link:26} {devices:7d}  {layout!s:28} {seconds:9.3f} {share:10.0%}")
    if options.plot:
        plot(rows, options.plot, rate)


if __name__ == "__main__":
    multiprocessing.freeze_support()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
