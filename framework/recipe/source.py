"""Reads recipe files with the position of each value, so that errors can give file, line and column.

A recipe is untrusted: only plain YAML is accepted (no tags, anchors or duplicate keys), with the scalars of YAML 1.2,
so `1e-4` is a number and `no` is a string.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from framework.recipe.renamed import FORMAT, RENAMED, WRITTEN_BY
from framework.recipe.schema import Choice, Recipe, Section, section_in
from framework.registry import did_you_mean, short
from framework.runtime.errors import Problem, UserError
from framework.runtime.files import read_bounded, real_path

Key = tuple[str | int, ...]  # ("model", "encoder", "width")
Found = tuple[Key, Problem]  # a problem whose place is known as a key
RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
GRIDS = "grids"  # its subfolder of grid files, see framework/grid
SHIPPED = "shipped:"  # `_base_: shipped:breast.yaml`, independent of where the package is installed
# Sections that may be a whole file: `data: busbra` is recipes/data/busbra.yaml.
GROUPS = ("data", "model", "losses", "train", "distributed", "evaluate", "checkpoint", "run")
MAX_BYTES = 1_000_000
MAX_DEPTH = 24
LARGEST = 2**63 - 1  # the largest integer of numpy and torch
# Any other `${` is refused, and so is every resolver (`${oc.env:HOME}` reads the environment).
REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")


def _texts(section: type[Section], above: Key = ()) -> Iterator[Key]:
    """The keys of the schema that are texts."""
    for key, name in section.field_names().items():
        annotation = section.model_fields[name].annotation
        inner = section_in(annotation)
        if annotation in (str, str | None):
            yield (*above, key)
        elif inner is not None and not issubclass(inner, Choice):
            yield from _texts(inner, (*above, key))


TEXTS = frozenset(_texts(Recipe))


class RecipeError(UserError):
    """The problems of a recipe, all at once."""


@dataclass
class Layer:
    """The values of one file, or of some of the overrides, with their positions."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)  # "file:line:column" or "override: key=value"
    plugin_files: tuple[Path, ...] = ()
    removals: list[tuple[Key, str]] = field(default_factory=list)  # `~key` and its position; applied before the values
    additions: list[tuple[Key, Any, str]] = field(default_factory=list)  # `+key=value`; applied after them


def expanded(path: str | Path) -> Path:
    """The path with `~` replaced by the home folder, where there is one."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises where there is none


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def is_within(name: str, block: str) -> bool:
    """Whether a dotted name is a block or lies in it."""
    return name == block or name.startswith(f"{block}.")


def nested(key: Key, value: Any) -> Any:
    """A tree of mappings with one value under its key."""
    for part in reversed(key):
        value = {part: value}
    return value


def forget(origins: dict[Key, str], key: Key) -> None:
    """Removes the positions of a key and of all keys in it."""
    for inner in [k for k in origins if k[: len(key)] == key]:
        del origins[inner]


def renamed_key(key: Key) -> Problem | None:
    new = RENAMED.get(dotted(key))
    return Problem("renamed-key", "the key was renamed", hint=f"Write {new}.") if new else None


def unknown_key(key: Key, known: Sequence[str]) -> Problem:
    """The problem of a key that is not among `known`, or has another name now."""
    hint = f"{did_you_mean(str(key[-1]), known)} Known: {', '.join(known) or 'none'}"
    return renamed_key(key) or Problem("unknown-key", "unknown key", hint=hint.strip())


def place(node: yaml.Node, name: str) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


class Loader(yaml.SafeLoader):
    """PyYAML's parser without tags and anchors, and with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            self._refuse("recipes have no anchors (&x, *x); write ${a.b} to repeat the value of a.b")
        if getattr(event, "tag", None):
            self._refuse(f"recipes have no tags, found {event.tag}; write the plain value")
        if self.level >= MAX_DEPTH:
            self._refuse(f"nested more than {MAX_DEPTH} levels deep")
        self.level += 1
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def _refuse(self, problem: str) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)


SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]{0,18})", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
)
for _tag, _pattern, _first in SCALARS:
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def _scalar(node: yaml.Node) -> Any:
    kind = node.tag.rsplit(":", 1)[-1]
    if kind == "null":
        return None
    if kind == "bool":
        return node.value.lower() == "true"
    if kind == "int":
        return int(node.value.replace("_", ""))
    if kind == "float":
        return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    try:  # JSON writes a character beyond U+FFFF as a surrogate pair, which YAML's reader does not join
        return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return node.value


def parse(text: str, name: str) -> yaml.Node | None:
    """The YAML nodes of a text. Raises RecipeError with file, line and column."""
    try:
        loader = Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        problem, hint = error.problem or str(error), ""
        if "'\\t'" in problem:
            problem, hint = "found a tab in the indentation", "Indent with spaces."
        if mark and "got '{'" in problem and "${" in (text.splitlines() or [""])[mark.line]:
            hint = "Inside { } or [ ] a reference needs quotes: '${a.b}'."
        elif "expected ',' or" in problem:
            hint = "Is a bracket left open?"
        elif "mapping values are not allowed" in problem:
            hint = "Is a colon missing in the line above, or does a text with ': ' lack quotes?"
        elif "expected <block end>" in problem:
            hint = "Is the line indented like its neighbours?"
        elif "found another document" in problem:
            problem, hint = "found a second document", "Delete the line ---."
        raise RecipeError("invalid-yaml", problem, place=at, hint=hint) from None
    except yaml.reader.ReaderError as error:
        read = text[: error.position]
        at = f"{name}:{read.count(chr(10)) + 1}:{error.position - read.rfind(chr(10))}"
        raise RecipeError(
            "invalid-yaml", f"found the control character U+{error.character:04X}", place=at, hint="Delete it."
        ) from None


def read_node(node: yaml.Node, key: Key, name: str, origins: dict[Key, str], problems: list[Problem]) -> Any:
    """The plain value of a node. Adds the position of every key to `origins`, and its problems to `problems`."""
    if isinstance(node, yaml.SequenceNode):
        values = []
        for index, item in enumerate(node.value):
            at = (*key, index)
            origins[at] = place(item, name)
            values.append(read_node(item, at, name, origins, problems))
        return values
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            here = place(key_node, name)
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(_scalar(key_node), str):
                problems.append(
                    Problem(
                        "wrong-type",
                        f"found the key {key_node.value!r}",
                        f"{here}: {dotted(key) or 'top level'}",
                        "a text",
                    )
                )
                continue
            inner = (*key, key_node.value)
            if key_node.value in mapping:
                first = f"occurs twice, first in line {origins[inner].split(':')[-2]}"
                problems.append(Problem("duplicate-key", first, f"{here}: {dotted(inner)}"))
                continue
            origins[inner] = here
            mapping[key_node.value] = read_node(value_node, inner, name, origins, problems)
        return mapping
    value = _scalar(node)
    if value is not None and not isinstance(value, str) and key in TEXTS:
        return node.value  # `run.name=12345`, as written
    if isinstance(value, int) and abs(value) > LARGEST:
        here = f"{place(node, name)}: {dotted(key)}"
        problems.append(Problem("out-of-range", f"found {value}", here, f"at most {LARGEST}"))
    if isinstance(value, str) and "${" in REFERENCE.sub("", value):
        here = f"{place(node, name)}: {dotted(key)}"
        problems.append(Problem("invalid-reference", f"found {value!r}", here, "${a.b} with the key of another value"))
    return value


def shipped_recipes() -> dict[str, Path]:
    """The shipped recipes by name: `breast`, `base/sgf`."""
    files = [path for path in sorted(RECIPES.rglob("*.yaml")) if path.parent != RECIPES / GRIDS]
    return {str(path.relative_to(RECIPES).with_suffix("")): path for path in files}


def find_shipped(named: str, others: Sequence[str] = ()) -> Path:
    """A shipped recipe by its name, with or without .yaml.

    Raises:
        RecipeError: there is none; gives the nearest name among them and `others`.
    """
    shipped = shipped_recipes()
    name = named.removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    if "." in name and name.partition(".")[0] in (*GROUPS, "distiller", "optimizer", "schedule"):
        raise RecipeError("wrong-format", "no = in it", place=named, expected="key=value, such as train.epochs=3")
    guess = did_you_mean(named, others) or did_you_mean(name, shipped)
    hint = f"{guess} Shipped: {', '.join(shipped)}".strip()
    raise RecipeError("no-such-file", "no such recipe file", place=named, hint=hint)


def find_file(named: str | Path) -> Path:
    """The file of a recipe, by its path or else by its name among the shipped recipes."""
    path, text = expanded(named), str(named)
    if text.startswith(SHIPPED):
        return find_shipped(text.removeprefix(SHIPPED))
    if path.is_dir():
        raise RecipeError("no-such-file", "found a folder", place=path, expected="a recipe file (.yaml)")
    if path.exists():
        return path
    neighbours = [str(file) for file in sorted(path.parent.glob("*.yaml"))]
    return find_shipped(text.removeprefix("recipes/"), neighbours)


def read_text(path: Path) -> str:
    name = short(path)
    try:
        data = read_bounded(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise RecipeError("unreadable-file", f"cannot be read: {error.strerror}", place=name) from None
    except UserError as error:
        raise RecipeError("unreadable-file", error.problems[0].found, place=name) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        read = data[: error.start]
        at = f"{name}:{read.count(10) + 1}:{error.start - read.rfind(10)}"
        raise RecipeError(
            "unreadable-file", f"not UTF-8 (byte {data[error.start]:#04x})", place=at, hint="Save the file as UTF-8."
        ) from None


def read_layers(path: Path, above: tuple[Path, ...] = (), done: set[Path] | None = None) -> list[Layer]:
    """A recipe file after the files that it is based on. A file that two of them share is read once, the first time."""
    done = set() if done is None else done
    real, name = real_path(path), short(path)
    if real in done:
        return []
    done.add(real)
    node = parse(read_text(path), name)
    if node is None:
        hint = f"`launch.py cp breast {path.name}` writes one to edit."
        raise RecipeError("wrong-format", "the file is empty", place=name, expected="a recipe", hint=hint)
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(
            "wrong-format", "found no mapping", place=place(node, name), expected="data: ..., model: ..., losses: ..."
        )
    problems: list[Problem] = []
    layer = Layer()
    layer.tree = read_node(node, (), name, layer.origins, problems)
    if "format" in layer.tree:
        check_format(layer.tree.pop("format"), layer.origins.pop(("format",)))
    at = layer.origins.get(("_base_",), name)
    bases = _paths(layer, "_base_", problems)
    layer.plugin_files = tuple(real_path(path.parent / expanded(item)) for item in _paths(layer, "plugins", problems))
    layers: list[Layer] = []
    for base in bases:
        try:
            below = _base(base, path, f"{at}: _base_")
            way = [*above, real, real_path(below)]
            if way[-1] in way[:-1]:
                circle = " -> ".join(short(p) for p in way[way.index(way[-1]) :])
                raise RecipeError("invalid-reference", f"based on itself: {circle}", place=f"{at}: _base_")
            layers += read_layers(below, (*above, real), done)
        except RecipeError as error:
            problems += error.problems
    for section in [s for s in GROUPS if isinstance(layer.tree.get(s), str)]:
        try:
            at = layer.origins.pop((section,))
            layers += read_group(section, layer.tree.pop(section), path, f"{at}: {section}")
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError.of(problems)
    return [*layers, layer]


def check_format(found: Any, at: str) -> None:
    """Refuses a saved recipe of another format than this version's. None: it has no number, as before 0.6.

    Raises:
        RecipeError: `found` is not `FORMAT`.
    """
    if found != FORMAT:
        raise RecipeError(
            "wrong-format", f"format {found}, written by {WRITTEN_BY.get(found, 'a later version of Sonoscribe')}",
            place=f"{at}: format", expected=f"{FORMAT}, of {WRITTEN_BY[FORMAT]}",
            hint="Use the run with that version, or train your recipe again with the new names of its keys.",
        )  # fmt: skip


def _base(named: str, path: Path, at: str) -> Path:
    if named.startswith(SHIPPED):
        try:
            return find_shipped(named.removeprefix(SHIPPED))
        except RecipeError as error:
            raise RecipeError.of([problem.at(at) for problem in error.problems]) from None
    base = path.parent / expanded(named)
    if not base.exists():
        shipped = named.removeprefix("recipes/").removesuffix(".yaml")
        beside = sorted(file.name for file in base.parent.glob("*.yaml") if real_path(file) != real_path(path))
        is_shipped = shipped in shipped_recipes()
        hint = f"Did you mean '{SHIPPED}{shipped}'?" if is_shipped else did_you_mean(base.name, beside).strip()
        raise RecipeError("no-such-file", f"no such file: {short(base)}", place=at, hint=hint)
    return base


def read_group(section: str, named: str, path: Path, at: str) -> list[Layer]:
    """The layers of `data: NAME`: the file data/NAME.yaml beside the recipe, or else a shipped one.

    Args:
        path: the recipe that names it.
        at: the place of errors.

    Raises:
        RecipeError: there is no such file, or it sets more than its section.
    """
    known = {
        str(file.relative_to(folder).with_suffix("")): file
        for folder in (RECIPES / section, path.parent / section)
        for file in sorted(folder.rglob("*.yaml"))
    }
    if named not in known:
        files = f" or a file of {section}/: {', '.join(known)}" if known else ""
        raise RecipeError(
            "unknown-name" if known else "wrong-type", f"found the text {named!r}", place=at,
            expected=f"a mapping (key: value){files}", hint=did_you_mean(named, known).strip(),
        )  # fmt: skip
    layers = read_layers(known[named])
    allowed = (section, "_base_", "plugins")
    for layer in layers:
        for key, where in layer.origins.items():
            if key[0] not in allowed:
                raise RecipeError(
                    "unknown-key", f"a file of {section}/ sets only {section}", place=f"{where}: {dotted(key)}"
                )
    return layers


def _paths(layer: Layer, key: str, problems: list[Problem]) -> list[str]:
    """The paths of `_base_` or `plugins`, which it removes from the layer."""
    if key not in layer.tree:
        return []
    value = layer.tree.pop(key)
    paths = as_paths(value)
    if paths is None:
        at = f"{layer.origins[(key,)]}: {key}"
        problems.append(Problem("wrong-type", f"found {value!r}", at, "a path or a list of paths"))
    return paths or []


def as_paths(value: Any) -> list[str] | None:
    """One path or a list of paths as a list; None for anything else."""
    values = [value] if isinstance(value, str) else value
    return values if isinstance(values, list) and all(isinstance(item, str) and item for item in values) else None
