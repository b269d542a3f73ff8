"""Reads recipe files as data with positions, so that every later complaint can name a file and a line.

A recipe is untrusted: only plain YAML is read (no tags, anchors or duplicate keys), with the scalars of YAML 1.2, so
`1e-4` is a number and `no` is a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from framework.registry import did_you_mean, short

Key = tuple[str | int, ...]  # where a value stands: ("model", "encoder", "width")
RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
MOST_BYTES = 1_000_000
MOST_LEVELS = 24
# Any other `${`, and so every resolver (`${oc.env:HOME}` reads the environment), is refused.
REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")


class RecipeError(ValueError):
    """What is wrong with a recipe: one line a mistake, all of them at once."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    @property
    def lines(self) -> tuple[str, ...]:
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.args)


@dataclass
class Layer:
    """One file, or all the overrides: values, and where each of them stands."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)  # "file:line" or "override: key=value"
    plugin_files: tuple[Path, ...] = ()


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


class Loader(yaml.SafeLoader):
    """PyYAML's parser without what a recipe has no use for, and with YAML 1.2's idea of a number."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            self._refuse("anchors (&x, *x) are not read in a recipe; write ${a.b} to repeat the value of a.b")
        if getattr(event, "tag", None):
            self._refuse(f"tags are not read in a recipe, found {event.tag}; write the plain value")
        if self.level >= MOST_LEVELS:
            self._refuse(f"nested more than {MOST_LEVELS} levels deep")
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
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        problem = error.problem or str(error)
        if "'\\t'" in problem:
            problem = "found a tab where YAML wants spaces; indent with spaces"
        if mark and "got '{'" in problem and "${" in (text.splitlines() or [""])[mark.line]:
            problem += "; inside { } or [ ] a reference stands in quotes: '${a.b}'"
        raise RecipeError(f"{place}: {problem}") from None
    except yaml.YAMLError as error:
        problem = re.sub(r"\s+", " ", str(error)).replace('in "<unicode string>", ', "")
        raise RecipeError(f"{name}: {problem}") from None


def read_node(node: yaml.Node, key: Key, name: str, origins: dict[Key, str], problems: list[str]) -> Any:
    """The plain value of a node; notes where every key stands, and what is wrong on the way."""
    place = f"{name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        values = []
        for index, item in enumerate(node.value):
            at = (*key, index)
            origins[at] = f"{name}:{item.start_mark.line + 1}"
            values.append(read_node(item, at, name, origins, problems))
        return values
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            here = f"{name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(_scalar(key_node), str):
                problems.append(
                    f"{here}: {dotted(key) or 'top level'}: a key is a plain text, found {key_node.value!r}"
                )
                continue
            inner = (*key, key_node.value)
            if key_node.value in found:
                problems.append(f"{here}: {dotted(inner)}: stands twice, first in line {origins[inner].split(':')[-1]}")
                continue
            origins[inner] = here
            found[key_node.value] = read_node(value_node, inner, name, origins, problems)
        return found
    value = _scalar(node)
    if isinstance(value, str) and "${" in REFERENCE.sub("", value):
        problems.append(f"{place}: {dotted(key)}: found {value!r}, expected ${{a.b}} with the key of another value")
    return value


def find_file(named: str | Path) -> Path:
    """The file of a recipe, by path or, where there is none, by its name among the shipped recipes."""
    path = Path(named)
    if path.is_dir():
        raise RecipeError(f"{path}: a folder, expected a recipe file (.yaml)")
    if path.exists():
        return path
    shipped = {str(p.relative_to(RECIPES).with_suffix("")): p for p in sorted(RECIPES.rglob("*.yaml"))}
    wanted = str(path.with_suffix("")) if path.suffix == ".yaml" else str(path)
    if wanted.removeprefix("recipes/") in shipped:
        return shipped[wanted.removeprefix("recipes/")]
    guess = did_you_mean(wanted.removeprefix("recipes/"), shipped)
    raise RecipeError(f"{named}: no such recipe file.{guess} Shipped: {', '.join(shipped) or 'none'}")


def read_text(path: Path) -> str:
    name = short(path)
    try:
        data = path.read_bytes() if path.stat().st_size <= MOST_BYTES else None
    except OSError as error:
        raise RecipeError(f"{name}: cannot be read: {error.strerror}") from None
    if data is None:
        raise RecipeError(f"{name}: larger than {MOST_BYTES:,} bytes, which no recipe is")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(f"{name}:{line}: not UTF-8 (byte {data[error.start]:#04x}); save the file as UTF-8") from None


def read_layers(path: Path, above: tuple[Path, ...] = (), done: set[Path] | None = None) -> list[Layer]:
    """A recipe file behind the files it is based on. A file that two of them share is read once, at its first place."""
    done = set() if done is None else done
    real, name = path.resolve(), short(path)
    if real in above:
        circle = " -> ".join(short(p) for p in [*above[above.index(real) :], real])
        raise RecipeError(f"{name}: based on itself: {circle}")
    if real in done:
        return []
    done.add(real)
    node = parse(read_text(path), name)
    if node is None:
        raise RecipeError(f"{name}: empty, expected a recipe; `launch.py describe` and recipes/ show how one looks")
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{name}:{node.start_mark.line + 1}: expected a mapping (data: ..., model: ..., losses: ...)")
    problems: list[str] = []
    layer = Layer()
    layer.tree = read_node(node, (), name, layer.origins, problems)
    bases = _paths(layer, "_base_", path, problems)
    layer.plugin_files = tuple(p.resolve() for p in _paths(layer, "plugins", path, problems))
    layers: list[Layer] = []
    at = layer.origins.get(("_base_",), name)
    for base in bases:
        try:
            if not base.exists():
                near = [p.name for p in base.parent.glob("*.yaml")] if base.parent.is_dir() else []
                raise RecipeError(f"{at}: _base_: no such file: {short(base)}.{did_you_mean(base.name, near)}")
            layers += read_layers(base, (*above, real), done)
        except RecipeError as error:
            problems += error.lines
    if problems:
        raise RecipeError(*problems)
    return [*layers, layer]


def _paths(layer: Layer, key: str, path: Path, problems: list[str]) -> list[Path]:
    """The files that `_base_` or `plugins` names, relative to the recipe that names them. Takes the key out."""
    if key not in layer.tree:
        return []
    value = layer.tree.pop(key)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) and item for item in values):
        problems.append(f"{layer.origins[(key,)]}: {key}: found {value!r}, expected a path or a list of paths")
        return []
    return [(path.parent / item) for item in values]
