"""Which cases there are, and which of them were asked for. No torch here."""

import fnmatch
from collections.abc import Sequence

from fastvideo.entrypoints.bench.records import Case, Settings
from fastvideo.entrypoints.bench.wan_cases import COMPONENT_CASES, LOAD_CASE
from fastvideo.utils import nearest, require

CASES: tuple[Case, ...] = (
    *COMPONENT_CASES,
    Case(name="generate", about="prompt to file with the model in the package", kind="program"),
    Case(name="import", about="import the package", kind="program"),
    Case(name="help", about="`--help`; import the pipeline", kind="program"),
    LOAD_CASE,
)


def find(name: str) -> Case:
    """The case called `name`."""
    return next(case for case in CASES if case.name == name)


def select(patterns: Sequence[str], settings: Settings) -> list[Case]:
    """The cases that `patterns`, names or globs, ask for, in the order of `CASES`; all for none.

    What runs on CUDA alone is there on CUDA, by name or with `full`.

    Raises:
        ValueError: a pattern matches no case (names the nearest), or a case that needs CUDA was named on a CPU.
    """
    names = [case.name for case in CASES]
    chosen: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        close = nearest(pattern, names)
        fix = f"did you mean {close!r}?" if close else f"there are {', '.join(names)}"
        require(bool(found), "case", pattern, "no such case", fix)
        if pattern in names:
            needs = find(pattern).cuda_only and settings.device != "cuda"
            require(not needs, "case", pattern, "runs on CUDA only", "leave it out, or use --device cuda")
        chosen |= {name for name in found if name == pattern or _included(find(name), settings)}
    if not patterns:
        chosen = {case.name for case in CASES if _included(case, settings)}
    return [case for case in CASES if case.name in chosen]


def _included(case: Case, settings: Settings) -> bool:
    return not case.cuda_only or (settings.full and settings.device == "cuda")
