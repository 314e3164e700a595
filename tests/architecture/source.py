"""The package's source as syntax trees, and where each file stands in the order of ranks."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fastvideo"

RANKS: dict[str, int] = {
    "__init__.py": 0,
    "envs.py": 0,
    "logger.py": 0,
    "utils.py": 0,
    "platforms": 1,
    "configs": 1,
    "fastvideo_args.py": 2,
    "distributed": 2,
    "layers": 3,
    "attention": 4,
    "models/__init__.py": 5,
    "models/dits": 5,
    "models/vaes": 5,
    "models/encoders": 5,
    "models/schedulers": 5,
    "models/upsamplers": 5,
    "models/audio": 5,
    "models/loader": 6,
    "pipelines/__init__.py": 6,
    "pipelines/pipeline_batch_info.py": 6,
    "pipelines/stages": 7,
    "pipelines/composed_pipeline_base.py": 8,
    "pipelines/basic": 9,
    "worker": 10,
    "api": 11,
    "entrypoints": 11,
    "training": 12,
}
"""The rank of each folder, or of a file that stands by itself, relative to the package."""
FOUNDATION = "."
"""The files of rank 0, as a folder."""
GENERIC_RANKS = (0, 2, 3, 4, 6, 7, 8)
"""Ranks whose code serves every model family."""


@dataclass(frozen=True)
class Source:
    """One file of the package."""

    path: Path

    @property
    def name(self) -> str:
        """Relative to the package, with forward slashes."""
        return self.path.relative_to(PACKAGE).as_posix()

    @property
    def module(self) -> str:
        """Its dotted name."""
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def folder(self) -> str:
        """Its entry in `RANKS`; for a pipeline, its family's folder."""
        return folder_of(self.name)

    @property
    def rank(self) -> int:
        """Its rank."""
        return rank_of(self.folder)

    @property
    def tree(self) -> ast.Module:
        """Its syntax."""
        return parsed(self.path)


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def folder_of(name: str) -> str:
    """The entry in `RANKS` that file `name`, relative to the package, falls under; empty when there is none."""
    found = [entry for entry in RANKS if name == entry or name.startswith(f"{entry}/")]
    entry = max(found, key=len, default="")
    if entry == "pipelines/basic":
        return "/".join(name.split("/")[:3])  # families do not know each other
    return FOUNDATION if RANKS.get(entry) == 0 else entry


def rank_of(folder: str) -> int:
    """The rank of a folder that `folder_of` gives."""
    if folder == FOUNDATION:
        return 0
    return RANKS["pipelines/basic" if folder.startswith("pipelines/basic") else folder]


def sources() -> list[Source]:
    """All files of the package."""
    return [Source(path) for path in sorted(PACKAGE.rglob("*.py"))]


def file_of(module: str) -> str | None:
    """The file of a module, relative to the package; None when `module` is no module of the package."""
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file() and candidate.is_relative_to(PACKAGE):
            return candidate.relative_to(PACKAGE).as_posix()
    return None


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Line and file, relative to the package, of each import of the package in `source`, wherever it stands."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.name}:{node.lineno}: a relative import"
            # what is imported is a module of its own, or lies in the module it is imported from
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [member if file_of(member) else str(node.module) for member in members]
        else:
            continue
        for name in names:
            if name.split(".")[0] == PACKAGE.name:
                found = file_of(name)
                assert found is not None, f"{source.name}:{node.lineno}: there is no module {name}"
                yield node.lineno, found


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Each function in `tree`, with its name after those of the classes and functions around it."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield prefix + child.name, child
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inner = f"{prefix}{child.name}."
            yield from walk(child, inner)

    return walk(tree, "")
