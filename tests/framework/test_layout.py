"""The one direction of the imports: the core knows no plugin, plugins know not one another, nothing calls back up."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the top down. A module imports only from further down; what stands together may not import each other.
ORDER = ("cli", "grid", "engine", "evaluation", "build", "step", "distributed", "task", "data", "recipe", "registry")
CORE = sorted((ROOT / "framework").rglob("*.py"))
PLUGINS = sorted(path for path in (ROOT / "plugins").rglob("*.py"))


def imported(path, top_level_only=False):
    """Dotted names that a file imports, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
        if top_level_only
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def module(path):
    return path.relative_to(ROOT / "framework").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_no_plugin(path):
    assert [name for name in imported(path) if name.split(".")[0] == "plugins"] == []


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_plugin_imports_no_other_plugin(path):
    own = path.relative_to(ROOT).with_suffix("").parts
    home = ".".join(own[:3])
    strangers = [n for n in imported(path) if n.split(".")[0] == "plugins" and ".".join(n.split(".")[:3]) != home]
    assert strangers == []


@pytest.mark.parametrize("path", [p for p in CORE if module(p) in ORDER], ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_calls_back_up(path):
    above = {f"framework.{name}" for name in ORDER[: ORDER.index(module(path))]}
    assert [name for name in imported(path) if ".".join(name.split(".")[:2]) in above] == []


@pytest.mark.parametrize("path", [p for p in CORE if module(p) == "grid"], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_grid_trains_nothing_itself(path):
    """Cells are processes of their own, so that one that dies takes nothing along."""
    assert [name for name in imported(path) if name.startswith("framework.engine")] == []


def test_the_core_imports_in_no_circle():
    needs = {}
    for path in CORE:
        names = {name.split(".")[1] for name in imported(path, top_level_only=True) if name.startswith("framework.")}
        needs.setdefault(module(path), set()).update(names - {module(path)})

    def walk(name, way):
        assert name not in way, f"imports in a circle: {' -> '.join([*way, name])}"
        for below in needs.get(name, ()):
            walk(below, [*way, name])

    for name in needs:
        walk(name, [])
