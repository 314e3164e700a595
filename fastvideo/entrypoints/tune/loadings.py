"""Other precisions and sparse attention of a model: how far its clips are then from the exact ones, and how much sooner
they are there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from fastvideo.configs.quantization import QUANTIZATIONS
from fastvideo.entrypoints.quality import in_words
from fastvideo.entrypoints.tune.measure import Bench, Clip, Point
from fastvideo.entrypoints.tune.search import BUDGETS, MARGIN
from fastvideo.logger import init_logger

logger = init_logger(__name__)

Options = dict[str, Any]
"""Of the engine: precision, quantization and attention."""
Load = Callable[[Options], Bench]
WhyNot = Callable[[Options], str | None]
"""Why the model cannot be loaded with some options here; None when it can."""

METHODS = tuple(QUANTIZATIONS)
SPARSE = tuple({"attention_backend": "VIDEO_SPARSE_ATTN", "VSA_sparsity": share} for share in (0.5, 0.8))
"""Attention that leaves keys out, as a model can that was not trained with it."""
QUICKER = 0.95
"""Of the seconds of a step: what saves less than that is not worth another picture."""
FEW = 2
"""Clips that are made with what is not quicker; it is seen from them, and the error told."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """A way to load the model, measured."""

    options: Options
    alone: Point
    """All blocks run."""
    times: float
    """How many times as fast a step is as in the model's own precision."""
    levels: Mapping[str, Point]
    """With the fields that were chosen for each level; empty for one that is not quicker than what it is made from."""

    @property
    def keeps(self) -> list[str]:
        """The levels in whose budgets it stays with their fields."""
        return [level for level, point in self.levels.items() if point.lowest >= BUDGETS[level] + MARGIN]

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return {
            "options": self.options, **told(self.alone), "times_as_fast": round(self.times, 3),
            "levels": {level: told(point) for level, point in self.levels.items()},
        }  # fmt: skip


def told(point: Point) -> dict[str, Any]:
    """A point for the file, without its fields, and with its time."""
    values = {name: value for name, value in point.to_json().items() if name != "fields"}
    return {**values, "step_seconds": round(point.step, 5)}


def search_loadings(
    load: Load, why_not: WhyNot, clips: Sequence[Clip], chosen: Mapping[str, Point], own: float
) -> list[Loading]:
    """bf16; each way to quantize in the quicker of it and the model's own precision; and sparse attention with the
    quickest of all these. One model is loaded at a time.

    Args:
        load: gives a bench with other options than the model's own.
        why_not: tells which cannot be.
        clips: exact ones.
        chosen: what each level stands for, where there is something.
        own: seconds of a step of an exact clip.
    """
    found: list[Loading] = []

    def measure(options: Options, against: float) -> Loading | None:
        reason = why_not(options)
        if reason is not None:
            logger.info("%s is not measured: %s", in_words(options), reason)
            return None
        loading = measured(load(options), options, clips, chosen, own, against)
        logger.info("%s: %.2f times as fast, lowest %.1f dB", in_words(options), loading.times, loading.alone.lowest)
        found.append(loading)
        return loading

    bf16 = measure({"precision": "bf16"}, own)
    base = bf16 if bf16 is not None and bf16.levels else None
    for method in tqdm(METHODS, desc="quantizations", disable=None):
        measure({**(base.options if base else {}), "quantization": method}, base.alone.step if base else own)
    quickest = min((one for one in found if one.levels), key=lambda one: one.alone.step, default=None)
    for sparse in tqdm(SPARSE, desc="sparse attention", disable=None):
        measure({**(quickest.options if quickest else {}), **sparse}, quickest.alone.step if quickest else own)
    return found


def measured(
    bench: Bench, options: Options, clips: Sequence[Clip], chosen: Mapping[str, Point], own: float, against: float
) -> Loading:
    """What `options` cost; with the fields of the levels too where a step takes clearly less than `against` seconds, as
    it does with whole weights, and the error leaves room for more."""
    floor = min(BUDGETS.values()) + MARGIN
    alone = bench.measure({}, clips[:FEW], floor)
    levels: dict[str, Point] = {}
    if alone.step < QUICKER * against and alone.lowest >= floor:
        alone = bench.measure({}, clips, floor)
        levels = {level: bench.measure(chosen[level].fields, clips, floor) if level in chosen else alone
                  for level in BUDGETS}  # fmt: skip
    return Loading(options=options, alone=alone, times=own / alone.step, levels=levels)


def pick(loadings: Sequence[Loading], chosen: Mapping[str, Point], own: float) -> dict[str, Loading]:
    """For each level the loading that is quickest with its fields, of those that keep to its budget and are clearly
    quicker than its fields alone, which take the seconds of `own` where there are none."""
    found = {}
    for level in BUDGETS:
        most = QUICKER * (chosen[level].step if level in chosen else own)
        within = [one for one in loadings if level in one.keeps and one.levels[level].step < most]
        if within:
            found[level] = min(within, key=lambda one: one.levels[level].step)
    return found


def together(picked: Mapping[str, Loading]) -> Iterator[tuple[Loading, list[str]]]:
    """Each loading once, with its levels."""
    loadings = list({id(one): one for one in picked.values()}.values())
    for loading in loadings:
        yield loading, [level for level, one in picked.items() if one is loading]


def loading_rows(
    loadings: Sequence[Loading], picked: Mapping[str, Loading], held_out: Mapping[str, Point], own: float
) -> list[tuple[str, ...]]:
    """A table of them, and of the picked ones on held-out prompts."""
    heading = ("loaded with", "s a step", "times as fast", "mean dB", "lowest dB",
               *(f"lowest with {level}" for level in BUDGETS), "chosen for")  # fmt: skip
    rows = [heading, ("as it is", f"{own:.3f}", "1.00", "-", "-", *("-" for _ in BUDGETS), "")]
    for one in loadings:
        lowest = (f"{one.levels[level].lowest:.1f}" if level in one.levels else "-" for level in BUDGETS)
        levels = ", ".join(level for level, other in picked.items() if other is one)
        rows.append((in_words(one.options), f"{one.alone.step:.3f}", f"{one.times:.2f}", f"{one.alone.mean:.1f}",
                     f"{one.alone.lowest:.1f}", *lowest, levels))  # fmt: skip
    for level, point in held_out.items():
        rows.append((f"{in_words(picked[level].options)}, {level}", f"{point.step:.3f}", "-", f"{point.mean:.1f}",
                     f"{point.lowest:.1f}", *("-" for _ in BUDGETS),
                     f"{level}, on {len(point.psnr)} other clips"))  # fmt: skip
    return rows
