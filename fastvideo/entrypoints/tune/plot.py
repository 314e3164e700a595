"""The measurements as a picture: what is saved against how far the video is from the exact one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvideo.entrypoints.quality import in_words
from fastvideo.entrypoints.tune.loadings import Loading
from fastvideo.entrypoints.tune.measure import Point
from fastvideo.entrypoints.tune.search import BUDGETS
from fastvideo.utils import atomic_path, require

KINDS = ("guidance alone", "fbcache", "teacache", "magcache")
COLOURS = {"guidance alone": "#777777", "fbcache": "#1f77b4", "teacache": "#d67a00", "magcache": "#2a8f4d"}


def check_matplotlib() -> None:
    """Check that a picture can be drawn, before hours are spent on what it shows.

    Raises:
        ValueError: matplotlib is not there.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        require(False, "--plot", "...", "matplotlib is missing", "pip install 'fastvideo[tune]', or use --no-plot")


def draw(
    points: Sequence[Point], chosen: Mapping[str, Point], title: str, path: Path, loadings: Sequence[Loading] = ()
) -> None:
    """Write `points` as a PNG to `path`, and those of `loadings`, alone and with the fields of levels; those `chosen`
    for a level are marked with its name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 6), layout="constrained")
    for kind in KINDS:
        for combined in (False, True):
            some = [point for point in points if kind_of(point) == (kind, combined)]
            if not some:
                continue
            saved = [100 * point.saved for point in some]
            means = [point.mean for point in some]
            below = [point.mean - point.lowest for point in some]
            axis.errorbar(saved, means, yerr=[below, [0] * len(some)], fmt="D" if combined else "o", capsize=2,
                          color=COLOURS[kind], elinewidth=0.7, markersize=5, alpha=0.85,
                          label=f"{kind} and guidance" if combined else kind)  # fmt: skip
    _draw_loadings(axis, loadings)
    for level, budget in BUDGETS.items():
        axis.axhline(budget, color="#bb3333", linewidth=0.8, linestyle="--")
        axis.annotate(f"budget of {level}", (1, budget), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                      textcoords="offset points", ha="right", fontsize=8, color="#bb3333")  # fmt: skip
    for level, point in chosen.items():
        where = (100 * point.saved, point.mean)
        axis.plot(*where, marker="o", markersize=14, markerfacecolor="none", markeredgecolor="#bb3333")
        axis.annotate(level, where, xytext=(10, 8), textcoords="offset points", color="#bb3333", weight="bold")
    axis.set(title=title, xlabel="block runs saved, %", ylabel="PSNR to the exact video, dB (mean, down to the lowest)")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)  # beside the marks, of which there are many
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _draw_loadings(axis: Any, loadings: Sequence[Loading]) -> None:
    """The precisions: how many times as fast a step is stands in the legend, as the axis shows block runs."""
    for number, loading in enumerate(loadings):
        label = f"{in_words(loading.options)}: a step {loading.times:.2f} times as fast"
        several = list({id(point): point for point in (loading.alone, *loading.levels.values())}.values())
        axis.errorbar([100 * point.saved for point in several], [point.mean for point in several],
                      yerr=[[point.mean - point.lowest for point in several], [0] * len(several)], fmt="*", capsize=2,
                      elinewidth=0.7, markersize=9, color=f"C{number}", markeredgecolor="black",
                      markeredgewidth=0.5, label=label)  # fmt: skip


def kind_of(point: Point) -> tuple[str, bool]:
    """The cache of a point, and whether guidance is saved as well."""
    cache = point.fields.get("cache")
    if cache is None:
        return "guidance alone", False
    return cache, any(name.startswith(("cfg_", "guidance_")) for name in point.fields)
