"""Which fields to measure, and which of those measured to choose."""

from collections.abc import Callable, Iterable, Sequence

from fastvideo.entrypoints.tune.measure import Fields, Point

BUDGETS = {"high": 30.0, "fast": 24.0}
"""The PSNR to the exact video that each level keeps, in dB."""
MARGIN = 5.0
"""The lowest of the clips that are tuned with has to be so many dB better: other prompts do worse than few."""

CACHES: dict[str, tuple[float, ...]] = {
    "fbcache": (0.1, 0.15, 0.2, 0.3),
    "teacache": (0.1, 0.3),
    "magcache": (0.06, 0.2),
}
"""The thresholds that are tried."""
GUIDANCE: tuple[Fields, ...] = (
    {"cfg_gate_step": 0.5},
    {"guidance_interval": (0.2, 1.0)},
    {"cfg_gate_step": 0.2, "cfg_gate_refresh": 2},
    {"cfg_gate_step": 0.2, "cfg_gate_refresh": 3},
    {"cfg_gate_step": 0.2, "cfg_gate_refresh": 3, "guidance_interval": (0.2, 1.0)},
    {"cfg_gate_step": 0.2, "cfg_gate_refresh": 5, "guidance_interval": (0.2, 1.0)},
)
NEARLY = 0.01
"""Of all block runs; what a few clips save tells no more."""
BEST = 2
"""Of each kind so many are combined."""

Measure = Callable[[Fields], Point]


def search(measure: Measure, guided: bool, coefficients: dict[str, list[float]]) -> list[Point]:
    """Each cache at several thresholds, each way to save guidance, and the best of them together.

    Args:
        measure: gives the point of some fields.
        guided: whether the model has guidance to save.
        coefficients: of the caches that need some.
    """
    alone = [
        measure(cached(name, threshold, coefficients)) for name, several in CACHES.items() for threshold in several
    ]
    if not guided:
        return alone
    saving = [measure(fields) for fields in GUIDANCE]
    names = list(dict.fromkeys(point.fields["cache"] for point in ranked(alone)))[:BEST]
    together = [
        measure({**cached(name, threshold, coefficients), **guidance.fields})
        for guidance in ranked(saving)[:BEST]
        for name in names
        for threshold in CACHES[name]
    ]
    return [*alone, *saving, *together]


def cached(name: str, threshold: float, coefficients: dict[str, list[float]]) -> Fields:
    """A cache that extrapolates, and needs no more than that: it has a threshold of its own to be careful."""
    fields: Fields = {"cache": name, "cache_threshold": threshold, "cache_order": 1}
    return fields | ({"cache_coefficients": tuple(coefficients[name])} if name in coefficients else {})


def ranked(points: Iterable[Point]) -> list[Point]:
    """The best first: those that keep the budget of `high`, by what they save, then the others by their error."""
    budget = BUDGETS["high"] + MARGIN
    return sorted(points, key=lambda point: (point.lowest >= budget, point.saved if point.lowest >= budget
                  else point.lowest), reverse=True)  # fmt: skip


def choose(points: Sequence[Point]) -> dict[str, Point]:
    """Of each level, among what saves most within its budget and what saves nearly as much, the point whose worst clip
    is best; a level without one is left out."""
    chosen = {}
    for level, budget in BUDGETS.items():
        within = [point for point in points if point.lowest >= budget + MARGIN and point.saved > 0]
        if within:
            most = max(point.saved for point in within)
            chosen[level] = max((p for p in within if p.saved >= most - NEARLY), key=lambda point: point.lowest)
    return chosen
