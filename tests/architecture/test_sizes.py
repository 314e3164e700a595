"""Functions and files stay small; what may not be is in one table, with its reason."""

from pathlib import Path

from tests.architecture.source import PACKAGE, ROOT, functions, parsed

FUNCTION_LINES = 60
FILE_LINES = 400
MODEL_FILE_LINES = 600
CORE_LINES = 20_770
"""Of the package, without what belongs to one model family, and without `APPLICATIONS`."""
APPLICATIONS = ("entrypoints/bench", "entrypoints/tune", "entrypoints/serve", "training")
"""Folders that use the package; nothing else in it uses them, but the command line their flags."""
CODE = ("fastvideo", "recipes", "benchmarks", "examples", "tests")

EXCEPTIONS: dict[str, tuple[int, str]] = {}
"""File, or "file::function", to the lines that it has at most, and the reason."""


def files() -> list[Path]:
    """All Python files of the project."""
    return [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    """Relative to the project."""
    return path.relative_to(ROOT).as_posix()


def limit_of(name: str, usual: int) -> int:
    """The lines that `name` may have."""
    return EXCEPTIONS.get(name, (usual, ""))[0]


def line_count(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def function_sizes() -> dict[str, int]:
    """Lines of every function, from its decorators on."""
    sizes = {}
    for path in files():
        for name, node in functions(parsed(path)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            sizes[f"{name_of(path)}::{name}"] = (node.end_lineno or first) - first + 1
    return sizes


def file_limit(path: Path) -> int:
    """The usual limit of a file."""
    model_file = path.is_relative_to(PACKAGE / "models") and not path.is_relative_to(PACKAGE / "models" / "loader")
    return MODEL_FILE_LINES if model_file else FILE_LINES


def test_functions() -> None:
    assert {name: lines for name, lines in function_sizes().items() if lines > limit_of(name, FUNCTION_LINES)} == {}


def test_files() -> None:
    sizes = {name_of(path): (line_count(path), file_limit(path)) for path in files()}
    assert {name: lines for name, (lines, usual) in sizes.items() if lines > limit_of(name, usual)} == {}


def test_the_core() -> None:
    families = {folder.name for folder in (PACKAGE / "pipelines" / "basic").iterdir() if folder.is_dir()}
    applications = {path for folder in APPLICATIONS for path in (PACKAGE / folder).rglob("*.py")}
    files = set(PACKAGE.rglob("*.py")) - applications
    core = [path for path in files if not any(path.stem.startswith(family) for family in families)]
    assert sum(map(line_count, core)) <= CORE_LINES


def test_exceptions_are_needed_and_have_a_reason() -> None:
    sizes = {**function_sizes(), **{name_of(path): line_count(path) for path in files()}}
    for name, (limit, reason) in EXCEPTIONS.items():
        assert reason, name
        usual = FUNCTION_LINES if "::" in name else file_limit(ROOT / name)
        assert usual < sizes[name] <= limit, f"{name}: {sizes[name]} lines; take it out of the table, or correct it"
