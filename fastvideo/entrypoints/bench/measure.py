"""Measurements within one process: seconds and agreement of a component, its peak memory, and loading."""

import dataclasses
import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastvideo.configs.registry import SHIPPED_MODEL
from fastvideo.entrypoints.bench.cases import find
from fastvideo.entrypoints.bench.peers import Run, find_peers
from fastvideo.entrypoints.bench.random_repo import write_repo
from fastvideo.entrypoints.bench.records import COMPILING, EAGER, OURS, Case, Result, Settings
from fastvideo.entrypoints.bench.wan import KINDS, Inputs, load_repo
from fastvideo.entrypoints.verify import BF16_NOISE, FP32_BOUND, largest_difference, root_mean_square
from fastvideo.models.loader.checkpoint import read_header
from fastvideo.platforms import DTYPES, Platform, current_platform
from fastvideo.platforms.cpu import process_memory

SEED = 11
PROFILED_OPS = 30


def component_repo(case: Case, settings: Settings, work: Path) -> Path:
    """A repo with the component of `case`, in a folder that cases of the same component and size share.

    Its weights are stored in bf16, so that all precisions compute with the same numbers.
    """
    kind, config = KINDS[case.kind], case.size(settings).config
    layers = config.get("num_layers", "")
    width = config.get("num_attention_heads", config.get("d_model", config.get("base_dim")))
    folder = work / f"{kind.component}-{width}-{layers}"
    return write_repo(folder, {kind.component: config}, torch.bfloat16, current_platform(settings.device).device)


def inputs_of(case: Case, settings: Settings, times: int = 1) -> Inputs:
    """What goes in, on the device: numbers that bf16 holds exactly, the same each time; of a clip of so many `times`
    the frames."""
    size = case.size(settings)
    shape = size.shape if times == 1 else (1 + times * (size.shape[0] - 1), *size.shape[1:])
    made = KINDS[case.kind].inputs(size.config, shape, torch.Generator().manual_seed(SEED))
    device = current_platform(settings.device).device
    return {name: (x.bfloat16().float() if x.is_floating_point() else x).to(device) for name, x in made.items()}


@torch.inference_mode()
def measure_component(name: str, settings: Settings, work: Path) -> Result:
    """Run all peers of `settings` on one case, in turn, `settings.rounds` times, after each has been warmed up.

    Between the rounds the machine's own peaks are measured.
    """
    case, platform = find(name), current_platform(settings.device)
    gc.freeze()  # modules: a collection between runs would go through all of them
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32
    kind, size, peers = KINDS[case.kind], case.size(settings), find_peers()
    repo, inputs = component_repo(case, settings, work), inputs_of(case, settings)
    result = Result(case=case.name, about=case.described(settings), flops=kind.flops(size.config, size.shape))
    result.weights = weight_bytes(repo, DTYPES[settings.precision])
    exact = None if settings.precision == "fp32" else exact_output(case, settings, repo, inputs)
    runs: dict[str, Run] = {}
    outputs: dict[str, torch.Tensor] = {}
    for peer in settings.peers:
        runs[peer] = peers[peer].load(repo, kind, settings.precision, settings.device)
        first, outputs[peer] = timed(partial(runs[peer], inputs), platform)
        if peer in COMPILING:
            second, outputs[peer] = timed(partial(runs[peer], inputs), platform)
            result.compile_seconds[peer] = max(0.0, first - second)
    compare(outputs, exact, result)
    outputs.clear()
    peaks = machine_peaks(settings, platform)
    result.seconds = {peer: [] for peer in settings.peers}
    for number in range(settings.rounds):
        gc.collect()
        turn = number % len(settings.peers)
        for peer in (*settings.peers[turn:], *settings.peers[:turn]):
            seconds, _ = timed(partial(runs[peer], inputs), platform)
            result.seconds[peer].append(seconds)
        for measured, rate in zip((result.matmul, result.copy), peaks, strict=True):
            measured.append(rate())
    if settings.profile:
        for peer in (OURS, EAGER):
            profile(partial(runs[peer], inputs), Path(settings.profile) / f"{name}-{peer}.txt", platform)
    return result


def timed(run: Callable[[], Any], platform: Platform) -> tuple[float, Any]:
    """Seconds until the device is done, and what `run` gives. No garbage is collected meanwhile."""
    gc.disable()
    try:
        platform.synchronize()
        started = time.perf_counter()
        made = run()
        platform.synchronize()
        return time.perf_counter() - started, made
    finally:
        gc.enable()


def exact_output(case: Case, settings: Settings, repo: Path, inputs: Inputs) -> torch.Tensor:
    """What the reference gives in fp32: of all inputs, or of those that make the first frames."""
    kind, frames = KINDS[case.kind], case.size(settings).exact_frames
    if frames is not None:
        assert kind.first is not None, f"{case.name}: {case.kind} has no frames"
        inputs = kind.first(inputs, frames)
    run = find_peers()[EAGER].load(repo, kind, "fp32", settings.device)
    return run(inputs)


def compare(outputs: dict[str, torch.Tensor], exact: torch.Tensor | None, result: Result) -> None:
    """Put the errors of `outputs`, by peer, and the failures into `result`.

    In fp32 (`exact` is None) an error is the largest difference from the reference over its largest magnitude. Else it
    is the root mean square of the difference from `exact`, the reference in fp32, over that of `exact`, and that of
    the reference itself, times `BF16_NOISE`, is the bound. Where `exact` has the first frames alone, no output may
    be further from the reference's than two such errors together are.
    """
    theirs = outputs[EAGER]
    if exact is None:
        result.bound = FP32_BOUND
        largest = max(float(theirs.abs().max()), 1e-30)
        result.errors = {peer: largest_difference(x, theirs) / largest for peer, x in outputs.items() if peer != EAGER}
    else:
        length = exact.shape[2] if exact.ndim > 3 else None
        cut = {peer: x if length is None else x[:, :, :length] for peer, x in outputs.items()}
        result.errors = {peer: root_mean_square(x, exact) for peer, x in cut.items()}
        result.bound = BF16_NOISE * result.errors[EAGER]
    for peer, error in result.errors.items():
        if not error <= result.bound:  # NaN fails too
            result.failures.append(f"{peer}: error {error:.2e}, bound {result.bound:.2e}")
    if exact is not None and theirs.shape != exact.shape:
        room = result.bound + result.errors[EAGER]
        for peer, made in outputs.items():
            distance = root_mean_square(made, theirs.float())
            if not distance <= room:
                result.failures.append(f"{peer}: {distance:.2e} from {EAGER} over all frames, bound {room:.2e}")


def machine_peaks(settings: Settings, platform: Platform) -> tuple[Callable[[], float], Callable[[], float]]:
    """Functions that measure what the machine does at most: FLOP/s of a matrix product in the precision, and bytes a
    second, read and written, of a copy."""
    cuda = platform.device_type == "cuda"
    side, nbytes, times = (256, 1 << 20, 1) if settings.tiny else (8192, 1 << 30, 10) if cuda else (4096, 1 << 28, 1)
    a, b, c = (torch.randn(side, side, device=platform.device).to(DTYPES[settings.precision]) for _ in range(3))
    source = torch.ones(nbytes, dtype=torch.uint8, device=platform.device)
    target = torch.zeros_like(source)

    def matmul() -> float:
        seconds, _ = timed(lambda: [torch.mm(a, b, out=c) for _ in range(times)], platform)
        return times * 2 * side**3 / seconds

    def copy() -> float:
        seconds, _ = timed(lambda: [target.copy_(source) for _ in range(times)], platform)
        return times * 2 * nbytes / seconds

    for warm_up in (matmul, copy):
        warm_up()
    return matmul, copy


def profile(run: Callable[[], Any], file: Path, platform: Platform) -> None:
    """Write the operators that take most of the time of `run` to `file`."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    cuda = platform.device_type == "cuda"
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        timed(run, platform)
    by = "self_device_time_total" if cuda else "self_cpu_time_total"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(profiler.key_averages().table(sort_by=by, row_limit=PROFILED_OPS, max_name_column_width=60))


@torch.inference_mode()
def measure_peak(name: str, settings: Settings, work: Path, peer: str, times: int = 1) -> Result:
    """Peak memory of one peer that runs a case, with a clip of so many `times` the frames, its weights included; for a
    process of its own."""
    case, platform = find(name), current_platform(settings.device)
    kind, loader = KINDS[case.kind], find_peers()[peer]
    # what is imported with the first model is no memory of this one
    small = component_repo(case, dataclasses.replace(settings, tiny=True), work)
    loader.load(small, kind, settings.precision, settings.device)
    if peer in COMPILING:
        torch.compile(torch.nn.functional.silu)(torch.ones(8, device=platform.device))
    repo, inputs = component_repo(case, settings, work), inputs_of(case, settings, times)
    gc.collect()
    before = process_memory("VmRSS")
    run = loader.load(repo, kind, settings.precision, settings.device)
    if peer in COMPILING:
        run(inputs)
    made = 0

    def measured() -> None:
        nonlocal made
        made = run(inputs).nbytes

    result = _with_peak(measured, Result(case=name), peer, before, platform)
    result.weights = weight_bytes(repo, DTYPES[settings.precision])
    peaks = result.device_peak or result.host_peak
    result.beyond = [peak - result.weights - made for peak in peaks.values()]
    return result


def _with_peak(run: Callable[[], Any], result: Result, peer: str, before: int | None, platform: Platform) -> Result:
    """`result` with the peaks during `run`; of the host, over `before`."""
    host = current_platform("cpu")
    gc.collect()
    host.reset_peak_memory()
    platform.reset_peak_memory()
    run()
    platform.synchronize()
    if before is not None:
        result.host_peak[peer] = host.peak_memory() - before
    if platform.device_type != "cpu":
        result.device_peak[peer] = platform.peak_memory()
    return result


def full_repo(case: Case, settings: Settings, work: Path) -> Path:
    """A random repo of several components, stored in fp32."""
    device = current_platform(settings.device).device
    return write_repo(work / case.name, case.size(settings).config, torch.float32, device)


def weight_bytes(repo: Path, dtype: torch.dtype) -> int:
    """Of a repo whose weights are all cast to `dtype`."""
    files = repo.glob("*/*.safetensors")
    return dtype.itemsize * sum(info.parameters for file in files for info in read_header(file).values())


def measure_load(name: str, settings: Settings, work: Path, peer: str) -> Result:
    """Load a random repo once; for a process of its own.

    The model in the package is loaded first, so that everything is imported.
    """
    case, platform = find(name), current_platform(settings.device)
    repo = full_repo(case, settings, work)
    load_repo(SHIPPED_MODEL, settings.device, peer)
    gc.collect()
    before = process_memory("VmRSS")
    result = Result(case=name, about=case.about, weights=weight_bytes(repo, torch.bfloat16))

    def load() -> None:
        result.seconds[peer] = [timed(lambda: load_repo(repo, settings.device, peer), platform)[0]]

    return _with_peak(load, result, peer, before, platform)
