"""Every pipeline against its reference, on small repos with random weights, in fp32: writes `docs/parity.md`.

    python benchmarks/parity.py                     all pipelines
    python benchmarks/parity.py --only vace,lucy    those rows alone; the others stay as they are
    python benchmarks/parity.py --only causal --print

A component's error is the largest difference over the largest magnitude. A pipeline's is the largest difference of any
pixel, of any of its requests. A row that is beyond its bound is not written, and the exit code is then 1.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from datetime import date
from importlib import metadata
from pathlib import Path

import torch

from fastvideo.entrypoints.reference import load_reference as load_component
from fastvideo.entrypoints.reference import quiet
from fastvideo.entrypoints.verify import PROBES, Clip, load_ours, make_inputs
from fastvideo.models.loader.component_loader import blueprint
from fastvideo.models.loader.repo import resolve_repo, weight_sources
from fastvideo.utils import resolve
from tests.pipelines.parity_cases import CASES, Case, pixel_error

PAGE = Path(__file__).parents[1] / "docs" / "parity.md"
COMPONENT_BOUND, PIXEL_BOUND = 1e-5, 1 / 255
HEADING = (
    "family", "pipeline", "reference", "components, worst", "pixels, worst", "requests", "date",
    "torch, diffusers, transformers",
)  # fmt: skip
INTRO = """# Parity

Each pipeline beside its reference, from the same small repo of random weights, the same prompts and the same seed, in
fp32 on a CPU. `make parity` runs all of it and writes this page, `python benchmarks/parity.py --only NAME` one row;
`make test` has one request of each pipeline, and the tests of each have many more.

- **Components**: of all models of the pipeline, the one that is furthest from the reference's: the largest difference
  over the largest magnitude. At most 1e-5.
- **Pixels**: the largest difference of any pixel of any request, of values from 0 to 1. At most 1/255, 0.0039.

"""
OUTRO = """
Where `diffusers` has no pipeline, the reference is the published algorithm, restated in a test step by step with the
models of `diffusers`: see `tests/pipelines/parity_cases.py`.
"""

Row = tuple[str, ...]


def component_errors(repo: Path) -> dict[str, float]:
    """The error of each output of each model of `repo`."""
    resolved = resolve_repo(repo)
    plans = [blueprint(source) for source in weight_sources(resolved)]
    config = resolve(resolved.entry.pipeline_config)().with_precision("fp32")
    errors: dict[str, float] = {}
    with quiet(), torch.no_grad():
        inputs = make_inputs(resolved, plans, config, Clip(64, 96, 9))
        for plan in plans:
            probe = PROBES[plan.source.class_name]
            exact = probe.reference(load_component(plan, torch.float32), inputs)
            made = probe.ours(load_ours(plan.source, torch.float32), inputs)
            for name, value in exact.items():
                kind = plan.source.name if name == "transformer" else name
                errors[kind] = float((made[name] - value).abs().max() / value.abs().max())
    return errors


def measure(case: Case, folder: Path) -> tuple[Row, bool]:
    """The row of a case, and whether it is within the bounds."""
    repo = case.make(folder / case.name)
    errors = component_errors(case.components_of(repo))
    worst = max(errors, key=lambda name: errors[name])
    pixels = [pixel_error(case, repo, request) for request in case.requests]
    versions = ", ".join(metadata.version(name) for name in ("torch", "diffusers", "transformers"))
    cells = (
        case.family, case.title, case.against, f"{errors[worst]:.1e} ({worst})", f"{max(pixels):.1e}", str(len(pixels)),
        str(date.today()), versions,
    )  # fmt: skip
    return cells, errors[worst] <= COMPONENT_BOUND and max(pixels) <= PIXEL_BOUND


def key_of(case: Case) -> Row:
    """What a row begins with."""
    return case.family, case.title


def rows_of(page: str) -> dict[Row, Row]:
    """The rows of a page with this heading, by what they begin with; none of another one."""
    lines = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in page.splitlines() if "|" in line]
    if not lines or lines[0] != HEADING:
        return {}
    return {line[:2]: line for line in lines[2:]}


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [HEADING, tuple("---" for _ in HEADING), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page_of(rows: Mapping[Row, Row]) -> str:
    """The page with `rows`, in the order of the cases; one that was not measured yet is not there."""
    return f"{INTRO}{table([rows[key_of(case)] for case in CASES if key_of(case) in rows])}\n{OUTRO}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of cases, or parts of names, with commas")
    parser.add_argument("--print", action="store_true", help="print the rows and write nothing")
    options = parser.parse_args()
    wanted = [part for part in options.only.split(",") if part]
    cases = [case for case in CASES if not wanted or any(part in case.name for part in wanted)]
    if not cases:
        parser.error(f"--only {options.only}: no such case; there are {', '.join(case.name for case in CASES)}")
    rows, good = rows_of(PAGE.read_text()), True
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            cells, within = measure(case, Path(folder))
            print(" | ".join(cells) + ("" if within else "  BEYOND ITS BOUND"), flush=True)
            good &= within
            if within and not options.print:
                rows[key_of(case)] = cells
                PAGE.write_text(page_of(rows))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
