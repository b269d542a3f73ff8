"""Kinds of plugins, and plugin files read as text: what is known of a plugin without running a line of it."""

from __future__ import annotations

import ast
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.runtime.errors import Problem, UserError
from framework.runtime.files import read_bounded


@dataclass(frozen=True)
class Kind:
    """A place in the framework that plugins fill."""

    name: str
    summary: str  # what a plugin of this kind is, for `ls`
    injected_params: frozenset[str] = frozenset()  # run-time values passed by build.py; a recipe may not set them


def _kinds(*rows: tuple[str, str, str]) -> dict[str, Kind]:
    return {name: Kind(name, summary, frozenset(injected_params.split())) for name, summary, injected_params in rows}


KINDS = _kinds(
    ("dataset", "a source of exams", "cache_dir"),
    ("tokenizer", "text to token ids and back", ""),
    ("augment", "augments training images", ""),
    ("encoder", "images to features", "channels hf_config"),
    ("decoder", "features to a report", "vocabulary_size vocabulary feature_width max_length hf_config"),
    ("distiller", "finds topics in reports", "segment seed"),
    (
        "loss",
        "one term of the loss",
        "vocabulary_size vocabulary feature_width topic_count word_vectors_WD max_length make_reward training_reports",
    ),
    ("metric", "scores generated reports", "language"),
    ("optimizer", "updates the parameters", "groups"),
    ("schedule", "learning rate over the steps", "steps"),
    ("executor", "starts the cells of a grid", "jobs folder"),
)
# Injected parameters that exist only if a distiller found topics.
NEEDS_TOPICS = frozenset({"topic_count"})
NAME = re.compile(r"(?:[a-z][a-z0-9_]*/)?[a-z][a-z0-9_]*")
LARGEST_CODE = 10_000_000  # bytes of a plugin file


class PluginError(UserError):
    """A plugin that is unknown, defined twice, cannot be read, or does not import."""


@dataclass(frozen=True)
class Plugin:
    """A plugin as its source text describes it."""

    kind: str
    name: str
    path: Path
    line: int
    qualname: str
    node: ast.ClassDef | ast.FunctionDef
    module: str | None = None  # None: a file outside every package
    replace: bool = False  # replaces a plugin of the same name
    origin: str = "shipped"  # or "file", or the name and version of its distribution

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
        """The signature whose arguments are recipe keys: of the function, or of the class's `__init__`."""
        if isinstance(self.node, ast.FunctionDef):
            return self.node.args
        for statement in self.node.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                return statement.args
        return ast.parse("def f(self): ...").body[0].args  # type: ignore[attr-defined]


def short(path: Path) -> str:
    """A path relative to the working folder, if it lies in it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def did_you_mean(found: str, known: Any) -> str:
    names = [str(item) for item in known]
    longer = [name for name in names if name.startswith(f"{found}_")]  # `lstm` of `lstm_attention`
    close = longer if len(longer) == 1 else difflib.get_close_matches(found, names, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown_name(what: str, name: str, known: Any, *, place: str = "") -> Problem:
    """A name that is not among `known`, with the nearest match."""
    hint = f"{did_you_mean(name, known)} Known: {', '.join(map(str, known)) or 'none'}".strip()
    return Problem("unknown-name", f"unknown {what} '{name}'", place, hint=hint)


def unknown_kind(kind: str, place: str = "") -> Problem:
    return unknown_name("kind", kind, KINDS, place=place)


def invalid_name(name: str, place: str = "") -> Problem | None:
    """The problem of a plugin's name, if it has one."""
    if NAME.fullmatch(name):
        return None
    return Problem(
        "wrong-format", f"found the plugin name '{name}'", place, "lowercase letters, digits and _, or vendor/name"
    )


def read_plugins(path: Path, module: str | None, origin: str) -> list[Plugin]:
    """The plugins that a file defines.

    Raises:
        PluginError: the file is not Python, or a registration cannot be read.
    """
    try:
        tree = ast.parse(read_bounded(path, LARGEST_CODE).decode(), filename=str(path))
    except SyntaxError as error:
        at = f":{error.lineno}:{error.offset}" if error.lineno else ""
        raise PluginError("invalid-plugin", f"not Python: {error.msg}", place=f"{short(path)}{at}") from None
    except UserError as error:
        raise PluginError("unreadable-file", error.problems[0].found, place=short(path)) from None
    except (ValueError, OSError, RecursionError, MemoryError) as error:
        raise PluginError("unreadable-file", f"cannot be read as Python: {error}", place=short(path)) from None
    plugins = []
    for node in tree.body:
        for decorator in node.decorator_list if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else []:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).split(".")[-1] == "register":
                assert isinstance(node, (ast.ClassDef, ast.FunctionDef))
                kind, name, replace = _read_decorator(decorator, f"{short(path)}:{decorator.lineno}")
                plugins.append(Plugin(kind, name, path, node.lineno, node.name, node, module, replace, origin))
    return plugins


def _read_decorator(call: ast.Call, place: str) -> tuple[str, str, bool]:
    """Kind, name and `replace` of `@register("kind", "name", replace=True)`."""
    texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    if len(texts) != 2 or len(call.args) != 2 or any(keyword.arg != "replace" for keyword in call.keywords):
        raise PluginError(
            "invalid-plugin", f"found @{ast.unparse(call)}", place=place,
            expected='@register("kind", "name") with two literal strings',
        )  # fmt: skip
    replace = getattr(call.keywords[0].value, "value", None) if call.keywords else False
    if not isinstance(replace, bool):
        raise PluginError(
            "invalid-plugin", f"found {ast.unparse(call.keywords[0])}", place=place, expected="a literal True or False"
        )
    kind, name = texts
    problem = unknown_kind(kind, place) if kind not in KINDS else invalid_name(name, place)
    if problem:
        raise PluginError.of([problem])
    return kind, name, replace
