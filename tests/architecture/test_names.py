"""Generic code names no model family, one file reads the environment, and calls are explicit."""

import ast
import re

import pytest

from tests.architecture.source import GENERIC_RANKS, PACKAGE, Source, sources

FAMILIES = (
    "animatediff", "causvid", "cogvideo", "cosmos", "flux", "hunyuan", "hyworld", "kandinsky", "longcat", "ltx",
    "ltxv", "matrixgame", "mochi", "opensora", "qwen", "skyreels", "stepvideo", "turbodiffusion", "wan", "wanvideo",
    "zimage",
)  # fmt: skip
"""Of video models, those in the package and those that may come."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def words(text: str) -> set[str]:
    """The words of `text` in lower case, with names in camel case and snake case taken apart."""
    return {word.lower() for word in WORD.findall(text)}


def test_every_family_of_the_package_is_known_here() -> None:
    present = {
        folder.name for folder in (PACKAGE / "pipelines" / "basic").iterdir() if (folder / "__init__.py").exists()
    }
    assert present <= set(FAMILIES)


@pytest.mark.parametrize("source", [s for s in sources() if s.rank in GENERIC_RANKS], ids=lambda source: source.name)
def test_generic_code_names_no_family(source: Source) -> None:
    lines = source.path.read_text(encoding="utf-8").splitlines()
    named = [f"line {number}: {line.strip()}" for number, line in enumerate(lines, 1) if words(line) & set(FAMILIES)]
    assert named == []


def test_words() -> None:
    assert words("class WanPipeline:  # WAN_480P, wan2.1, wanted, I2V") >= {"wan", "pipeline", "wanted"}
    assert not words("wanted swan taiwan") & set(FAMILIES)
    assert words("HunyuanVideo LTXVideo") >= {"hunyuan", "ltx"}


def environment_uses(tree: ast.Module) -> list[int]:
    """Lines that read or write environment variables."""
    names = ("environ", "environb", "getenv", "getenvb", "putenv", "unsetenv")
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in names for a in node.names))
    ]


def test_only_envs_reads_the_environment() -> None:
    users = {source.name for source in sources() if environment_uses(source.tree)}
    assert users == {"envs.py"}
    assert environment_uses(ast.parse("import os\nfrom os import getenv\nx = os.environ['A']")) == [2, 3]


@pytest.mark.parametrize(
    "source", [s for s in sources() if s.name.startswith("pipelines/")], ids=lambda source: source.name
)
def test_pipelines_do_not_look_at_what_an_object_happens_to_have(source: Source) -> None:
    called = [node.func for node in ast.walk(source.tree) if isinstance(node, ast.Call)]
    names = {ast.unparse(function) for function in called}
    assert not names & {"hasattr", "getattr", "setattr", "inspect.signature"}
    swallowed = [
        node.name
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.args.kwarg is not None
    ]
    assert swallowed == []
