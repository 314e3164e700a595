"""What was measured, as tables of Markdown. No torch here."""

import datetime
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from fastvideo import __version__
from fastvideo.entrypoints.bench.bars import bar_rows
from fastvideo.entrypoints.bench.records import COMPILING, OURS, OURS_COMPILED, Ratio, Result, Settings
from fastvideo.utils import processor

BARS_TEXT = """\
What the project set itself: on CPUs for two cores with AMX; on CUDA for an H200, where 50 steps with guidance in 55 s
are 100 forwards of 0.55 s, ours compiled. Work is that of the reference, and the peak is the fastest matrix
product that was measured between the rounds of the case. Where the other already runs at a share S of it, nobody who
does the same arithmetic in the same precision is more than 1/S times as fast: a bar above that is out of reach on such
a machine. A bar on what a short clip takes is about memory beyond the weights and the clip itself, with four times the
frames."""
NO_BARS_TEXT = "None with `--tiny`: its sizes are for tests, so the numbers mean nothing."
LIBRARIES = ("torch", "diffusers", "transformers")
NOTES = """\
- A case runs all implementations in one process, in turn, after each has been warmed up; the first of a round changes
  from round to round. Whole processes and loading alternate between processes.
- Seconds are medians over the rounds, with the least and the most. A ratio is one of medians: how many times as fast
  ours is. In brackets is its 95% confidence interval, a bootstrap over rounds.
- The weights are random, the same for all, read from the same files by each one's own loader; `generate` runs the
  model in the package, in fp32, which is its own precision.
- `ours` is this package as it is; `ours compiled` is it with `enable_torch_compile`, which is for the transformer.
- `eager` is the reference as it is, `diffusers` and `transformers`. `compiled` is the same under `torch.compile`, in
  its default mode and for fixed shapes: the whole transformer, the whole text encoder, and of the VAE what runs for
  each latent frame. Compiling starts from an empty cache.
- Work is counted by formula (`fastvideo/entrypoints/bench/wan_cases.py`) and is that of the reference. The share is of
  a large matrix product in the same precision, which is measured between the rounds, as is the copy.
- The transformer gets a prompt of 128 rows of text. The reference is given 512, most of them zero, as its pipeline
  does; ours one row that stands for all zero rows, as our pipeline does. The result is the same.
- In bf16 an error is the root mean square of the difference from the reference in fp32, over that of the reference.
  What an error may be at most is that of `eager`, times a room for chance. In fp32 it is the largest difference from
  `eager` over the largest magnitude. Of a long video the first 5 frames are compared so, the others with `eager`.
- Memory is the peak of a process of its own. For components and loading it is what is over the process's memory before
  the weights; for whole processes it is all.
- `vae-decode-longer` decodes a clip and one with four times the frames, ours alone, each in a process of its own. What
  is compared is the peak less the weights and less the clip that is made, which has to be somewhere. These processes
  give freed memory back at once; what the usual allocator keeps for later is not measured.
- `load` casts to bf16, in one process a time, with everything imported and the files in the system's cache.
- `help` is `fastvideo --help` against `from diffusers import WanPipeline`; `import` is `import fastvideo` against
  `import diffusers`.
"""


def page(results: Sequence[Result], settings: Settings, facts: dict[str, Any], command: str) -> str:
    """The whole page."""
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return f"""# Benchmarks

FastVideo beside `diffusers`, on the same weights, in one run, by the command:

```bash
{command}
```

`make bench` measures again. [Command line](cli.md#fastvideo-bench) has the flags. Numbers of other machines differ.

## Machine

{markdown([("what", "value"), *machine_rows(facts), *version_rows(), ("date", date)])}

{tables(results, settings, facts)}

## How it is measured

{NOTES}"""


def tables(results: Sequence[Result], settings: Settings, facts: dict[str, Any]) -> str:
    """Speed, and memory and agreement."""
    how = f"{settings.precision}, {facts['threads']} threads on {facts['device']}, {settings.rounds} rounds"
    bars = bar_rows(results, settings)
    told = ["## Bars", NO_BARS_TEXT] if settings.tiny else ["## Bars", BARS_TEXT, markdown(bars)] if bars else []
    parts = [
        f"## Speed\n\n{how}{'; sizes for tests, so the numbers mean nothing' if settings.tiny else ''}.",
        markdown(speed_rows(results, settings)),
        "\n".join(peak_lines(results, settings)),
        *told,
        "## Memory and agreement",
        markdown(memory_rows(results, settings)),
    ]
    failures = [f"- `{result.case}` failed: {reason}" for result in results for reason in result.failures]
    refused = [f"- `{name}` was not run: {reason}" for name, reason in facts["refused"].items() if reason]
    return "\n\n".join(part for part in (*parts, "\n".join(failures + refused)) if part)


def speed_rows(results: Sequence[Result], settings: Settings) -> list[Sequence[str]]:
    """A row for each case that was timed."""
    peers = settings.peers
    others = [peer for peer in peers if peer not in (OURS, OURS_COMPILED)]
    compiling = [peer for peer in peers if peer in COMPILING]
    heading = (
        "case", "what", *(f"{peer}, s" for peer in peers), *(f"against {peer}" for peer in others), "TFLOP/s of ours",
        "share of peak", *(f"to compile, {peer}, s" for peer in compiling),
    )  # fmt: skip
    rows: list[Sequence[str]] = [heading]
    for result in results:
        if result.beyond:  # of memory alone
            continue
        timed = OURS in result.seconds
        ratios = (ratio_text(result.ratio(peer)) if timed and peer in result.seconds else "-" for peer in others)
        first = (shown(result.compile_seconds.get(peer), "{:.0f}".format) for peer in compiling)
        rows.append((
            f"`{result.case}`", result.about + (" (FAILED)" if result.failures else ""),
            *(shown(result.seconds.get(peer), seconds_text) for peer in peers), *ratios,
            shown(result.rate, lambda rate: f"{rate / 1e12:.3g}"), shown(result.share, "{:.0%}".format), *first,
        ))  # fmt: skip
    return rows


def memory_rows(results: Sequence[Result], settings: Settings) -> list[Sequence[str]]:
    """A row for each case: peaks in MB, and errors."""
    peers = settings.peers
    device = settings.device != "cpu"
    heading = [
        "case", *(f"{peer}, MB" for peer in peers), *(f"{peer}, device MB" for peer in peers if device), "weights, MB",
        *(f"error of {peer}" for peer in peers), "bound", "result",
    ]  # fmt: skip
    rows: list[Sequence[str]] = [heading]
    for result in results:
        cells = [f"`{result.case}`", *(shown(result.host_peak.get(peer), megabytes) for peer in peers)]
        cells += [shown(result.device_peak.get(peer), megabytes) for peer in peers if device]
        cells.append(shown(result.weights, megabytes))
        cells += [shown(result.errors.get(peer), "{:.1e}".format) for peer in peers]
        compared = "agrees" if result.bound is not None else "-"
        rows.append([*cells, shown(result.bound, "{:.1e}".format), "FAILED" if result.failures else compared])
    return rows


def peak_lines(results: Sequence[Result], settings: Settings) -> list[str]:
    """What the machine did at most, over all cases."""
    lines = []
    for what, unit, rates in (
        (f"matrix product in {settings.precision}", "TFLOP/s", [rate / 1e12 for r in results for rate in r.matmul]),
        ("copy, read and written", "GB/s", [rate / 1e9 for r in results for rate in r.copy]),
    ):
        if rates:
            spread = f"{min(rates):.3g} to {max(rates):.3g}"
            lines.append(f"- {what}: {statistics.median(rates):.3g} {unit} (median; {spread} over the run)")
    return lines


def shown(value: Any, how: Callable[[Any], str]) -> str:
    """`value` as `how` writes it; a dash for None."""
    return "-" if value is None else how(value)


def seconds_text(seconds: Sequence[float]) -> str:
    """The median, and the least and the most."""
    middle = statistics.median(seconds)
    digits = 3 if middle < 1 else 2
    return f"{middle:.{digits}f} ({min(seconds):.{digits}f} to {max(seconds):.{digits}f})"


def ratio_text(ratio: Ratio) -> str:
    """The ratio and its interval."""
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def megabytes(count: int) -> str:
    """Bytes as MB."""
    return f"{count / 1e6:,.0f}"


def machine_rows(facts: dict[str, Any]) -> list[Sequence[str]]:
    """What was measured on."""
    model, flags = processor()
    rows = [("processor", f"{model}, {os.cpu_count()} cores"), ("of its flags", ", ".join(flags) or "none known")]
    if facts["device"] != "cpu":
        rows.append(("device", f"{facts['device_name']}, {facts['device_memory'] / 1e9:.0f} GB"))
    rows += [
        ("memory", f"{facts['host_memory'] / 1e9:.0f} GB"),
        ("system", f"{platform.system()}, {platform.machine()}"),
    ]
    return [*rows, ("threads", str(facts["threads"]))]


def version_rows() -> list[Sequence[str]]:
    """Versions of what takes part."""
    libraries = [(name, importlib.metadata.version(name)) for name in LIBRARIES]
    return [("fastvideo", __version__), ("Python", platform.python_version()), *libraries]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table; the first is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
