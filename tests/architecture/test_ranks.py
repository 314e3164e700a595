"""A file imports from its own folder and from lower ranks, and from nowhere else."""

import ast
import re

import pytest

from tests.architecture.source import PACKAGE, Source, file_of, folder_of, imports, rank_of, sources

LAZY_EXPORTS = "__init__.py"
"""It names what the package exports, of any rank: for type checkers, and as strings that are resolved on use."""
REFERENCES_UP: dict[str, str] = {
    LAZY_EXPORTS: "the package's exports",
    "configs/registry.py": "the registry names pipelines and models, which are imported when one is used",
    "configs/wan.py": "and so do the entries of a family",
    "configs/wan_few_steps.py": "those of its models of few steps",
    "configs/wan_fun.py": "the entries of its models by VideoX-Fun",
}
"""Files that may hold the name of a module of a higher rank in a string."""


def misplaced(source: Source, file: str) -> str | None:
    """What is wrong with `source` knowing `file`; None when nothing is."""
    folder = folder_of(file)
    if folder == source.folder or rank_of(folder) < source.rank:
        return None
    return f"{source.name} (rank {source.rank}) must not know {file} (rank {rank_of(folder)})"


def test_every_file_has_a_rank() -> None:
    assert [source.name for source in sources() if not source.folder] == []


def test_imports_go_down() -> None:
    wrong = []
    for source in sources():
        for line, file in imports(source):
            problem = misplaced(source, file)
            if problem and source.name != LAZY_EXPORTS:
                wrong.append(f"line {line}: {problem}")
    assert wrong == []


def test_the_lazy_exports_import_for_type_checkers_only() -> None:
    tree = Source(PACKAGE / LAZY_EXPORTS).tree
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert module in ("importlib", "typing")
        elif isinstance(node, ast.If):
            assert ast.unparse(node.test) == "TYPE_CHECKING"


def test_names_of_modules_in_strings_go_down() -> None:
    wrong = []
    for source in sources():
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            found = re.fullmatch(rf"({PACKAGE.name}(?:\.\w+)+)(?::(\w+))?", node.value)
            if found is None or source.name in REFERENCES_UP:
                continue
            file = file_of(found[1])
            problem = f"{node.value}: no such module" if file is None else misplaced(source, file)
            if problem:
                wrong.append(f"{source.name}:{node.lineno}: {problem}")
    assert wrong == []


@pytest.mark.parametrize("folder", ["models/dits", "models/vaes", "models/encoders"])
def test_model_files_make_no_distributed_call(folder: str) -> None:
    for source in sources():
        if source.folder != folder:
            continue
        assert [file for _, file in imports(source) if folder_of(file) == "distributed"] == []
        used = {ast.unparse(node) for node in ast.walk(source.tree) if isinstance(node, (ast.Attribute, ast.alias))}
        assert not any(name.startswith("torch.distributed") for name in used), source.name


def test_the_check_sees_imports_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from typing import TYPE_CHECKING
import fastvideo.utils
from fastvideo import envs
if TYPE_CHECKING:
    from fastvideo.entrypoints.video_generator import VideoGenerator
def f():
    from fastvideo.worker import executor, in_process
    import fastvideo.training.ema as ema
"""
    monkeypatch.setattr(Source, "tree", ast.parse(code))
    layer = Source(PACKAGE / "layers" / "mlp.py")
    found = [file for _, file in imports(layer)]
    assert sorted(found) == [
        "entrypoints/video_generator.py", "envs.py", "training/ema.py", "utils.py", "worker/executor.py",
        "worker/in_process.py",
    ]  # fmt: skip
    allowed = [file for file in found if misplaced(layer, file) is None]
    assert sorted(allowed) == ["envs.py", "utils.py"]


def test_folders_of_one_rank_do_not_know_each_other() -> None:
    platform = Source(PACKAGE / "platforms" / "base.py")
    assert misplaced(platform, "configs/registry.py")
    assert misplaced(platform, "platforms/cpu.py") is None
    assert misplaced(Source(PACKAGE / "pipelines" / "basic" / "a" / "a_pipeline.py"), "pipelines/basic/b/b_pipeline.py")
