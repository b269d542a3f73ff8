"""The levels of the imports: a module imports those below its own, and no plugin; a plugin imports no other plugin."""

import ast
from pathlib import Path

import pytest
from harness import ROOT

# From the bottom up. Entries of one level do not import one another.
LEVELS = (
    ("runtime",),
    ("exam", "registry"),
    ("recipe", "models"),
    ("data", "text", "checkpoint", "task", "optim"),
    ("topics", "scoring", "distributed"),
    ("build", "train_step"),
    ("run", "pages"),
    ("evaluation",),
    ("deploy", "grid", "plan", "serve"),
    ("trainer", "testing"),
    ("cli",),
)
LEVEL = {entry: level for level, entries in enumerate(LEVELS) for entry in entries}
CORE = sorted(path for path in (ROOT / "framework").rglob("*.py") if "templates" not in path.parts)
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))


def imported(path: Path) -> list[str]:
    """Dotted names of the modules that a file imports, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module != "framework", f"{path}:{node.lineno}: import the module, not the package"
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            found.append(".".join([*package, *([node.module] if node.module else [])]))
    return found


def entry(path: Path) -> str:
    return path.relative_to(ROOT / "framework").parts[0].removesuffix(".py")


def test_every_entry_of_the_framework_has_a_level():
    assert {entry(path) for path in CORE} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_no_plugin(path):
    assert [name for name in imported(path) if name.split(".")[0] == "plugins"] == []


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_plugin_imports_no_other_plugin(path):
    home = ".".join(path.relative_to(ROOT).with_suffix("").parts[:3])
    others = [n for n in imported(path) if n.split(".")[0] == "plugins" and ".".join(n.split(".")[:3]) != home]
    assert others == []


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_levels_below_its_own(path):
    own = entry(path)
    above = [
        name
        for name in imported(path)
        if name.startswith("framework.")
        and (other := name.split(".")[1]) != own
        and LEVEL[other] >= LEVEL.get(own, len(LEVELS))
    ]
    assert above == []
