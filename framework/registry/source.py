"""Kinds of plugins, and plugin files read as text: what is known of a plugin without running a line of it."""

from __future__ import annotations

import ast
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A place in the framework that plugins fill."""

    name: str
    gives: str  # what a plugin of this kind is, for `ls`
    injected_params: frozenset[str] = (
        frozenset()
    )  # what only a run knows: handed over by build.py, never a recipe's key


def _kinds(*rows: tuple[str, str, str]) -> dict[str, Kind]:
    return {name: Kind(name, gives, frozenset(injected_params.split())) for name, gives, injected_params in rows}


KINDS = _kinds(
    ("dataset", "a source of exams", ""),
    ("tokenizer", "text to ids and back", ""),
    ("augment", "images to images, in training", ""),
    ("encoder", "views to features", "channels hf_config"),
    ("decoder", "features to a report", "vocabulary_size vocabulary feature_width max_length hf_config"),
    ("distiller", "reports to topics", "segment seed"),
    (
        "loss",
        "one term of the loss",
        "vocabulary_size vocabulary feature_width topic_count word_vectors_WD max_length make_reward",
    ),
    ("metric", "a score of generated reports", "language"),
    ("optimizer", "parameters to updates", "groups"),
    ("schedule", "the learning rate over the steps", "steps"),
    ("executor", "what starts the cells of a grid", "jobs folder"),
)
# Values that exist only where a distiller found topics.
NEEDS_TOPICS = frozenset({"topic_count"})
NAME = re.compile(r"(?:[a-z][a-z0-9_]*/)?[a-z][a-z0-9_]*")


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
    replace: bool = False  # takes the place of a plugin of the same name
    origin: str = "shipped"  # or "file", or the name and version of the distribution that brings it

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


def unknown_kind(kind: str) -> str:
    return f"Unknown kind '{kind}'.{did_you_mean(kind, KINDS)} Known: {', '.join(KINDS)}"


def bad_name(name: str) -> str | None:
    """What is wrong with a name; None where it is good."""
    if NAME.fullmatch(name):
        return None
    return f"'{name}' cannot be a plugin's name: expected small letters, digits and _, or vendor/name"


def read_plugins(path: Path, module: str | None, origin: str) -> list[Plugin]:
    """The plugins that a file defines.

    Raises:
        PluginError: the file is no Python, or marks a plugin in a way that cannot be read.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        at = f":{error.lineno}:{error.offset}" if error.lineno else ""
        raise PluginError(f"{short(path)}{at}: not Python: {error.msg}") from None
    except (ValueError, OSError) as error:
        raise PluginError(f"{short(path)}: cannot be read as Python: {error}") from None
    found = []
    for node in tree.body:
        for mark in node.decorator_list if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else []:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func).split(".")[-1] == "register":
                assert isinstance(node, (ast.ClassDef, ast.FunctionDef))
                kind, name, replace = _read_mark(mark, f"{short(path)}:{mark.lineno}")
                found.append(Plugin(kind, name, path, node.lineno, node.name, node, module, replace, origin))
    return found


def _read_mark(mark: ast.Call, where: str) -> tuple[str, str, bool]:
    """Kind, name and `replace` of `@register("kind", "name", replace=True)`."""
    words = [arg.value for arg in mark.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    if len(words) != 2 or len(mark.args) != 2 or any(word.arg != "replace" for word in mark.keywords):
        raise PluginError(f'{where}: write @register("kind", "name") with two plain strings')
    replace = getattr(mark.keywords[0].value, "value", None) if mark.keywords else False
    if not isinstance(replace, bool):
        raise PluginError(f"{where}: replace is True or False, written out")
    kind, name = words
    if kind not in KINDS:
        raise PluginError(f"{where}: {unknown_kind(kind)}")
    if problem := bad_name(name):
        raise PluginError(f"{where}: {problem}")
    return kind, name, replace
