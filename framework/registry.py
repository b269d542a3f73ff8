"""Kinds and names: finds plugins without importing them, and imports the one that a recipe names.

A plugin is a class (or function) under `@register(kind, name)`. Its file is read as text to learn its name, its keys
and its documentation, so `ls`, `describe` and `validate` stay quick however heavy the plugin's imports are.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

PLUGINS = Path(__file__).resolve().parent.parent / "plugins"
T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """A place in the framework that plugins fill."""

    name: str
    gives: str  # what a plugin of this kind is, for `ls`
    given: frozenset[str] = frozenset()  # what only a run knows: handed over by build.py, never a recipe's key


def _kinds(*rows: tuple[str, str, str]) -> dict[str, Kind]:
    return {name: Kind(name, gives, frozenset(given.split())) for name, gives, given in rows}


KINDS = _kinds(
    ("dataset", "a source of exams", ""),
    ("tokenizer", "text to ids and back", ""),
    ("augment", "images to images, in training", ""),
    ("encoder", "views to features", "channels"),
    ("decoder", "features to a report", "vocabulary_size feature_width max_tokens"),
    ("distiller", "reports to topics", "segment seed"),
    ("loss", "one term of the loss", "vocabulary_size feature_width topic_count word_vectors_WD"),
    ("metric", "a score of generated reports", ""),
    ("optimizer", "parameters to updates", "groups"),
    ("schedule", "the learning rate over the steps", "steps"),
)
# Values that exist only where a distiller found topics.
NEEDS_TOPICS = frozenset({"topic_count"})


class PluginError(ValueError):
    """A name that is not known, known twice, or whose plugin does not load."""


@dataclass(frozen=True)
class Plugin:
    """What is known of a plugin from its text alone."""

    kind: str
    name: str
    path: Path
    line: int
    qualname: str
    node: ast.ClassDef | ast.FunctionDef
    module: str | None = None  # None: a file outside every package

    @property
    def doc(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def summary(self) -> str:
        return self.doc.split("\n")[0]

    @property
    def where(self) -> str:
        return f"{short(self.path)}:{self.line}"

    @property
    def arguments(self) -> ast.arguments:
        """The signature that a recipe fills: of the function, or of the class's `__init__`."""
        if isinstance(self.node, ast.FunctionDef):
            return self.node.args
        for statement in self.node.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                return statement.args
        return ast.parse("def f(self): ...").body[0].args  # type: ignore[attr-defined]


def short(path: Path) -> str:
    """A path as a person would type it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def did_you_mean(found: str, known: Any) -> str:
    close = difflib.get_close_matches(found, [str(item) for item in known], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def register(kind: str, name: str) -> Callable[[T], T]:
    """Marks a class or function as the plugin `kind/name`. Both must be written out as plain strings."""
    if kind not in KINDS:
        raise PluginError(f"Unknown kind '{kind}'.{did_you_mean(kind, KINDS)} Known: {', '.join(KINDS)}")

    def mark(plugin: T) -> T:
        plugin.registered = (kind, name)  # type: ignore[attr-defined]
        return plugin

    return mark


def _marked(path: Path, module: str | None) -> list[Plugin]:
    """The plugins that a file defines, by reading it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, UnicodeDecodeError, OSError) as error:
        raise PluginError(f"{short(path)}: not a Python file that can be read: {error}") from None
    found = []
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        for mark in node.decorator_list:
            if not (isinstance(mark, ast.Call) and ast.unparse(mark.func).split(".")[-1] == "register"):
                continue
            constants = [arg.value for arg in mark.args if isinstance(arg, ast.Constant)]
            words = [word for word in constants if isinstance(word, str)]
            if len(words) != 2:
                raise PluginError(
                    f'{short(path)}:{node.lineno}: write @register("kind", "name") with two plain strings'
                )
            if words[0] not in KINDS:
                raise PluginError(
                    f"{short(path)}:{node.lineno}: unknown kind '{words[0]}'."
                    f"{did_you_mean(words[0], KINDS)} Known: {', '.join(KINDS)}"
                )
            found.append(Plugin(words[0], words[1], path, node.lineno, node.name, node, module))
    return found


@cache
def _shipped() -> tuple[Plugin, ...]:
    found = []
    for kind in KINDS:
        for path in sorted((PLUGINS / kind).glob("*.py")):
            if path.name != "__init__.py":
                found += _marked(path, f"plugins.{kind}.{path.stem}")
        for path in sorted((PLUGINS / kind).glob("*/__init__.py")):
            found += _marked(path, f"plugins.{kind}.{path.parent.name}")
    return tuple(found)


@cache
def _installed() -> tuple[Plugin, ...]:
    """Plugins of other packages, by entry points in `sonoscribe.<kind>`: found and read, not imported."""
    found = []
    for kind in KINDS:
        for point in importlib.metadata.entry_points(group=f"sonoscribe.{kind}"):
            spec = importlib.util.find_spec(point.module)
            if spec is None or spec.origin is None:
                raise PluginError(f"Entry point {point.name} = {point.value}: no module {point.module}")
            here = [p for p in _marked(Path(spec.origin), point.module) if (p.kind, p.name) == (kind, point.name)]
            if not here:
                raise PluginError(
                    f"Entry point {point.name} = {point.value}: {spec.origin} registers no {kind} of that name"
                )
            found += here
    return tuple(found)


@cache
def catalogue(files: tuple[Path, ...] = ()) -> dict[tuple[str, str], Plugin]:
    """Every plugin by (kind, name): shipped, installed, and those of `files`.

    Raises:
        PluginError: two plugins of one kind and name, a file that does not parse, a file without a plugin.
    """
    found = [*_shipped(), *_installed()]
    for path in files:
        if not path.is_file():
            raise PluginError(f"{short(path)}: no such plugin file")
        here = _marked(path, None)
        if not here:
            raise PluginError(f'{short(path)}: registers no plugin; put @register("kind", "name") over a class')
        found += here
    known: dict[tuple[str, str], Plugin] = {}
    for plugin in found:
        key = (plugin.kind, plugin.name)
        if key in known:
            raise PluginError(f"Two {plugin.kind}s are named '{plugin.name}': {known[key].where} and {plugin.where}")
        known[key] = plugin
    return known


def find(kind: str, name: str, files: tuple[Path, ...] = ()) -> Plugin:
    """The plugin of this kind and name, without importing it."""
    known = catalogue(files)
    if (kind, name) in known:
        return known[kind, name]
    names = sorted(n for k, n in known if k == kind)
    raise PluginError(f"Unknown {kind} '{name}'.{did_you_mean(name, names)} Known: {', '.join(names)}")


def load(plugin: Plugin) -> Any:
    """Imports a plugin's module and gives the class or function."""
    try:
        if plugin.module is not None:
            module = importlib.import_module(plugin.module)
        else:
            module = _import_file(plugin.path)
    except ImportError as error:
        raise PluginError(f"{plugin.kind} '{plugin.name}' ({plugin.where}) does not import: {error}") from error
    return getattr(module, plugin.qualname)


def _import_file(path: Path) -> Any:
    name = f"sonoscribe_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
