"""The bars that the project set itself, and how near a run comes to them. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastvideo.entrypoints.bench.records import COMPILED, EAGER, OURS, OURS_COMPILED, Result, Settings

SECONDS, MEMORY, GROWTH = "seconds", "memory", "growth"


@dataclass(frozen=True)
class Bar:
    """What a case should come to."""

    case: str
    about: str
    """The peer that ours is compared with; or `SECONDS`, of a program in all; or `MEMORY`, the peak of the host; or
    `GROWTH`, of the peak when the clip is longer."""
    value: float
    """How many times as fast as the peer; how many seconds at most; how many times the weights, or what a short
    clip takes, at most."""
    ours: str = OURS
    """Which of ours it is about."""


CPU_BARS = (
    Bar("dit-7800", EAGER, 1.8),
    Bar("dit-7800", COMPILED, 1.15),
    Bar("vae-decode-5x240x416", EAGER, 3.5),
    Bar("vae-decode-5x240x416", COMPILED, 2.0),
    Bar("vae-encode-5x240x416", EAGER, 3.5),
    Bar("vae-encode-5x240x416", COMPILED, 2.0),
    Bar("text-encoder-512", EAGER, 1.3),
    Bar("text-encoder-512", COMPILED, 1.0),
    Bar("generate", EAGER, 2.0),
    Bar("import", SECONDS, 0.5),
    Bar("help", SECONDS, 0.5),
    Bar("load", MEMORY, 1.1),
    Bar("vae-decode-longer", GROWTH, 1.1),  # none at all, but that peaks of a process vary by some percent
)
"""Set for two cores of a CPU with AMX, in bf16."""
CUDA_BARS = (
    Bar("dit-1.3b", EAGER, 1.5, OURS_COMPILED),
    Bar("dit-1.3b", SECONDS, 0.55, OURS_COMPILED),
)
"""Set for an H200, in bf16: 50 steps with guidance, which are 100 forwards, in 55 seconds."""
BARS = {"cpu": CPU_BARS, "cuda": CUDA_BARS}
"""By the type of the device."""


def bar_rows(results: Sequence[Result], settings: Settings) -> list[Sequence[str]]:
    """A row for each bar of a case that was run, under a heading; none where bars do not count."""
    if settings.tiny or settings.precision != "bf16":
        return []
    by_case = {result.case: result for result in results if not result.failures}
    found = [bar_row(bar, by_case[bar.case]) for bar in BARS.get(settings.device, ()) if bar.case in by_case]
    heading = ("case", "bar", "reached", "the other's share of peak", "most at 100% of it", "result")
    return [heading, *found] if found else []


def bar_row(bar: Bar, result: Result) -> tuple[str, ...]:
    """What `result` says of `bar`: met, not met, or out of reach for whoever does the same arithmetic."""
    name, share, most = f"`{result.case}`", "-", "-"
    if bar.about == SECONDS:
        text = f"{bar.value:g} s at most"
        if bar.ours not in result.seconds:
            return name, text, "-", share, most, "not measured"
        seconds = result.median(bar.ours)
        return name, text, f"{seconds:.3f} s", share, most, verdict(seconds <= bar.value)
    if bar.about == MEMORY:
        text = f"{bar.value:.0%} of the weights at most"
        if not result.weights or OURS not in result.host_peak:
            return name, text, share, share, most, "not measured"
        held = result.host_peak[OURS] / result.weights
        return name, text, f"{held:.0%}", share, most, verdict(held <= bar.value)
    if bar.about == GROWTH:
        text = f"{bar.value:.0%} of a short clip's at most"
        if len(result.beyond) != 2:
            return name, text, share, share, most, "not measured"
        short, long = result.beyond
        reached = f"{long / short:.0%} ({short / 1e6:.0f} and {long / 1e6:.0f} MB)"
        return name, text, reached, share, most, verdict(long <= bar.value * short)
    text = f"{bar.value:g} times {bar.about}"
    if not {bar.about, bar.ours} <= result.seconds.keys():
        return name, text, "-", share, most, "not measured"
    ratio, possible = result.ratio(bar.about, bar.ours).value, None
    if result.flops is not None and result.matmul:
        theirs = result.flops / result.median(bar.about) / max(result.matmul)
        possible = 1 / theirs
        share, most = f"{theirs:.0%}", f"{possible:.2f}"
    return name, text, f"{ratio:.2f}", share, most, verdict(ratio >= bar.value, possible, bar.value)


def verdict(met: bool, possible: float | None = None, wanted: float = 0.0) -> str:
    """In words, with the largest ratio that is possible, where it is known."""
    if met:
        return "met"
    return "not met" if possible is None or possible >= wanted else "out of reach on this machine"
