"""What is public says what it is."""

import ast

import pytest

from tests.architecture.source import Source, sources

Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(node: ast.Module | ast.ClassDef) -> list[Documented]:
    """The classes and functions of a module, or methods of a class, that others may use."""
    return [
        child
        for child in node.body
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_")
    ]


def undocumented(tree: ast.Module) -> list[str]:
    """Public classes, functions and methods without a docstring.

    A method may rely on that of a base, or of a protocol in the file; a property's name may say it all.
    """
    described = {
        method.name
        for node in public(tree)
        if isinstance(node, ast.ClassDef)
        for method in public(node)
        if ast.get_docstring(method)
    }
    found = []
    for node in public(tree):
        if ast.get_docstring(node) is None:
            found.append(node.name)
        if isinstance(node, ast.ClassDef) and not node.bases:
            found += [
                f"{node.name}.{method.name}"
                for method in public(node)
                if method.name not in described and not is_property(method)
            ]
    return found


def is_property(node: Documented) -> bool:
    """Whether a method is one."""
    names = {ast.unparse(decorator) for decorator in node.decorator_list}
    return bool(names & {"property", "cached_property"}) or any(name.endswith(".setter") for name in names)


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
def test_docstrings(source: Source) -> None:
    if source.tree.body:
        assert ast.get_docstring(source.tree), source.name
    assert undocumented(source.tree) == []


def test_what_counts() -> None:
    tree = ast.parse('def f(): ...\nclass A:\n    "doc"\n    def g(self): ...\n    def _h(self): ...\ndef _i(): ...')
    assert undocumented(tree) == ["f", "A.g"]
