"""Peak host memory of loading a repo, against the size of its weights in memory.

    python benchmarks/load_memory.py                     a random repo of 1.2 GB in a temporary folder
    python benchmarks/load_memory.py --model FOLDER      a repo of yours
    python benchmarks/load_memory.py --precision bf16    cast while loading
    python benchmarks/load_memory.py --quantization int8   the linear layers of transformer and text encoder quantized
    python benchmarks/load_memory.py --tp 2              on two processes, each with a slice of the layers; also --fsdp

Loading runs in a process of its own, whose memory is measured from just before the first weight is read (all modules
imported, model built on the meta device) to the end. The peak is the most of anonymous and mapped pages together that
the process ever held. Linux only: it reads /proc.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from fastvideo.configs.quantization import QUANTIZATIONS
from fastvideo.distributed.groups import Groups
from fastvideo.distributed.layout import Layout

MB = 1e6


def memory(field: str) -> int:
    """Bytes that `field` of /proc/self/status gives."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def measure(
    model: str, precision: str, groups: Groups | None = None, quantization: str | None = None
) -> dict[str, float]:
    """Load every weight of `model` in this process, or this rank's part of them; bytes and seconds."""
    from fastvideo.distributed.groups import ONE_RANK
    from fastvideo.distributed.placement import local_rows
    from fastvideo.layers.quantization import held_bytes, quantizer
    from fastvideo.models.loader.component_loader import blueprint, load_component
    from fastvideo.models.loader.repo import resolve_repo, weight_sources
    from fastvideo.platforms import DTYPES

    plans = [blueprint(source) for source in weight_sources(resolve_repo(model))]
    largest = max(info.nbytes for plan in plans for info in plan.source.header().values())
    stored = sum(plan.nbytes for plan in plans)
    methods = {plan.source.name: None if plan.source.name == "vae" else quantization for plan in plans}
    if quantization is not None:
        quantizer(quantization)(torch.nn.Linear(256, 256).requires_grad_(False))  # what torchao imports is no weight
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    started = time.perf_counter()
    models = [
        load_component(plan, dtype=DTYPES[precision], groups=groups or ONE_RANK, quantization=methods[plan.source.name])
        for plan in plans
    ]
    seconds = time.perf_counter() - started
    tensors = [x for model in models for x in model.state_dict(keep_vars=True).values()]
    weights = sum(held_bytes(x) if quantization else local_rows(x)[0].nbytes for x in tensors)
    peak = memory("VmHWM") - before
    return {
        "stored": stored, "weights": weights, "largest": largest, "peak": peak, "seconds": seconds,
        "over": peak - weights,
    }  # fmt: skip


def make_repo(path: Path) -> Path:
    """A random repo whose transformer has 0.3 billion parameters, in several files."""
    from tests.tiny_repos import make_wan_repo

    sizes = {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 6, "ffn_dim": 8960, "text_dim": 64}
    encoder = {"num_heads": 4, "d_model": 64, "d_kv": 16, "d_ff": 64}
    return make_wan_repo(path, max_shard_size="300MB", transformer=sizes, text_encoder=encoder)


def on_rank(model: str, precision: str, layout: Layout) -> dict[str, float]:
    """`measure` on this rank of `layout`."""
    from fastvideo.distributed.groups import build_groups

    if layout.fsdp:
        import torch.distributed.fsdp  # noqa: F401 - its modules are no weights
    return measure(model, precision, build_groups(layout, "cpu"))


def measure_ranks(model: str, precision: str, layout: Layout) -> list[dict[str, float]]:
    """`measure` on every rank of `layout`, each a process."""
    from tests.distributed.processes import Processes

    processes = Processes(layout.world)
    try:
        return processes.run(on_rank, model, precision, layout)
    finally:
        processes.close()


def show_ranks(found: list[dict[str, float]], layout: Layout) -> None:
    """A line for each rank."""
    print(
        f"{layout}: weights in their files {found[0]['stored'] / MB:.1f} MB, largest {found[0]['largest'] / MB:.1f} MB"
    )
    for rank, one in enumerate(found):
        numbers = ", ".join(f"{name} {one[key] / MB:.1f} MB" for name, key in (
            ("its weights", "weights"), ("peak", "peak"), ("over its weights", "over"),
        ))  # fmt: skip
        print(f"rank {rank}: {numbers}, {one['seconds']:.2f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a local repo; a random one when not given")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--quantization", choices=tuple(QUANTIZATIONS), help="of the linear layers")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="on N processes with a slice of each layer")
    parser.add_argument("--fsdp", type=int, default=1, metavar="N", help="on N processes with a shard of the weights")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.model, options.precision, quantization=options.quantization)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(make_repo(Path(folder) / "repo"))
        if options.tp * options.fsdp > 1:
            layout = Layout(tp=options.tp, ring=options.fsdp, fsdp=options.fsdp > 1)
            show_ranks(measure_ranks(model, options.precision, layout), layout)
            return
        command = [sys.executable, __file__, "--child", "--model", model, "--precision", options.precision]
        command += ["--quantization", options.quantization] if options.quantization else []
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(f"weights in their files     {found['stored'] / MB:9.1f} MB")
    print(f"weights in memory          {found['weights'] / MB:9.1f} MB  ({options.quantization or options.precision})")
    print(f"largest tensor             {found['largest'] / MB:9.1f} MB")
    print(f"peak while loading         {found['peak'] / MB:9.1f} MB")
    print(f"over the weights           {found['over'] / MB:9.1f} MB")
    print(f"time                       {found['seconds']:9.2f} s")


if __name__ == "__main__":
    main()
