"""docs/troubleshooting.md explains every error code, and every code belongs to an error that the code raises."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from harness import ROOT

from framework.runtime.codes import CODES

FILES = [path for folder in ("framework", "plugins") for path in sorted((ROOT / folder).rglob("*.py"))]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES if path.name != "codes.py"}


def name_of(node: ast.expr) -> str:
    return ast.unparse(node).split(".")[-1]


def user_errors() -> set[str]:
    """Names of `Problem`, `UserError` and all classes that inherit from it, also over several steps."""
    bases = {
        node.name: {name_of(base) for base in node.bases}
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"Problem", "UserError"}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return found


def codes_raised() -> Iterator[tuple[str, str]]:
    """(place, code) of each call of an error with a literal code."""
    errors = user_errors()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and name_of(node.func) in errors and node.args:
                code = node.args[0]
                choices = [code.body, code.orelse] if isinstance(code, ast.IfExp) else [code]
                for each in choices:
                    if isinstance(each, ast.Constant) and isinstance(each.value, str):
                        yield f"{path.relative_to(ROOT)}:{each.lineno}", each.value


def test_every_code_of_an_error_is_explained() -> None:
    assert [(place, code) for place, code in codes_raised() if code not in CODES] == []


def test_every_code_that_is_explained_is_used() -> None:
    """Some functions take the code of the error that they raise, so any text of the code that equals it counts."""
    texts = {
        node.value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert sorted(CODES.keys() - texts) == []


def test_every_code_has_one_row() -> None:
    page = Path(ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and line.split("`")[1] in CODES]
    assert sorted(rows) == sorted(CODES)
