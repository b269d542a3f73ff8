"""Reads recipe files as data with positions, so that every later complaint can name a file and a line.

A recipe is untrusted: only plain YAML is read (no tags, anchors or duplicate keys), with the scalars of YAML 1.2, so
`1e-4` is a number and `no` is a text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from framework.registry import did_you_mean, short

Key = tuple[str | int, ...]  # where a value stands: ("model", "encoder", "width")
RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
GRIDS = "grids"  # the folder in it whose files state ablations of recipes, see framework/grid
SHIPPED = "shipped:"  # `_base_: shipped:breast.yaml`, wherever the package lies
# Sections that may be a whole file: `data: busbra` is recipes/data/busbra.yaml.
GROUPS = ("data", "model", "losses", "train", "distributed", "evaluate", "checkpoint", "run")
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
    """One file, or some of the overrides: values, and where each of them stands."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)  # "file:line:column" or "override: key=value"
    plugin_files: tuple[Path, ...] = ()
    removals: list[tuple[Key, str]] = field(default_factory=list)  # `~key`, before the values; and where it stands
    additions: list[tuple[Key, Any, str]] = field(default_factory=list)  # `+key=value`, after them


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def is_within(name: str, block: str) -> bool:
    """Whether a dotted name is that of a block, or of something in it."""
    return name == block or name.startswith(f"{block}.")


def nested(key: Key, value: Any) -> Any:
    """A value under its key, as a tree of mappings."""
    for part in reversed(key):
        value = {part: value}
    return value


def forget(origins: dict[Key, str], key: Key) -> None:
    """Drops where a key and all in it stood."""
    for stale in [k for k in origins if k[: len(key)] == key]:
        del origins[stale]


def place(node: yaml.Node, name: str) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


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
    try:  # JSON writes a character beyond the first 65,536 as two halves, which YAML's reader leaves apart
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
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        problem = error.problem or str(error)
        if "'\\t'" in problem:
            problem = "found a tab where YAML wants spaces; indent with spaces"
        if mark and "got '{'" in problem and "${" in (text.splitlines() or [""])[mark.line]:
            problem += "; inside { } or [ ] a reference stands in quotes: '${a.b}'"
        elif "expected ',' or" in problem:
            problem += "; is a bracket left open?"
        elif "mapping values are not allowed" in problem:
            problem += "; is a colon missing in the line above, or does a text with ': ' lack quotes?"
        elif "expected <block end>" in problem:
            problem += "; is the line indented like its neighbours?"
        elif "found another document" in problem:
            problem += "; a recipe is one document, so take out the line ---"
        raise RecipeError(f"{place}: {problem}") from None
    except yaml.reader.ReaderError as error:
        read = text[: error.position]
        at = f"{name}:{read.count(chr(10)) + 1}:{error.position - read.rfind(chr(10))}"
        raise RecipeError(
            f"{at}: found the character U+{error.character:04X}, which no text has; take it out"
        ) from None


def read_node(node: yaml.Node, key: Key, name: str, origins: dict[Key, str], problems: list[str]) -> Any:
    """The plain value of a node; notes where every key stands, and what is wrong on the way."""
    if isinstance(node, yaml.SequenceNode):
        values = []
        for index, item in enumerate(node.value):
            at = (*key, index)
            origins[at] = place(item, name)
            values.append(read_node(item, at, name, origins, problems))
        return values
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            here = place(key_node, name)
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(_scalar(key_node), str):
                problems.append(
                    f"{here}: {dotted(key) or 'top level'}: a key is a plain text, found {key_node.value!r}"
                )
                continue
            inner = (*key, key_node.value)
            if key_node.value in found:
                problems.append(f"{here}: {dotted(inner)}: stands twice, first in line {origins[inner].split(':')[-2]}")
                continue
            origins[inner] = here
            found[key_node.value] = read_node(value_node, inner, name, origins, problems)
        return found
    value = _scalar(node)
    if isinstance(value, str) and "${" in REFERENCE.sub("", value):
        problems.append(
            f"{place(node, name)}: {dotted(key)}: found {value!r}, expected ${{a.b}} with the key of another value"
        )
    return value


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name: `breast`, `base/sgf`."""
    files = [path for path in sorted(RECIPES.rglob("*.yaml")) if path.parent != RECIPES / GRIDS]
    return {str(path.relative_to(RECIPES).with_suffix("")): path for path in files}


def find_shipped(named: str, others: Sequence[str] = ()) -> Path:
    """A recipe of the package by its name, with or without .yaml.

    Raises:
        RecipeError: there is none; with the nearest name among them and `others`.
    """
    shipped = shipped_recipes()
    name = named.removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    if "." in name and name.partition(".")[0] in (*GROUPS, "distiller", "optimizer", "schedule"):
        raise RecipeError(f"{named}: expected key=value, such as train.epochs=3")
    guess = did_you_mean(named, others) or did_you_mean(name, shipped)
    raise RecipeError(f"{named}: no such recipe file.{guess} Shipped: {', '.join(shipped)}")


def find_file(named: str | Path) -> Path:
    """The file of a recipe, by path or, where there is none, by its name among the shipped recipes."""
    path, text = Path(named), str(named)
    if text.startswith(SHIPPED):
        return find_shipped(text.removeprefix(SHIPPED))
    if path.is_dir():
        raise RecipeError(f"{path}: a folder, expected a recipe file (.yaml)")
    if path.exists():
        return path
    beside = [str(file) for file in sorted(path.parent.glob("*.yaml"))]
    return find_shipped(text.removeprefix("recipes/"), beside)


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
        read = data[: error.start]
        at = f"{name}:{read.count(10) + 1}:{error.start - read.rfind(10)}"
        raise RecipeError(f"{at}: not UTF-8 (byte {data[error.start]:#04x}); save the file as UTF-8") from None


def read_layers(path: Path, above: tuple[Path, ...] = (), done: set[Path] | None = None) -> list[Layer]:
    """A recipe file behind the files it is based on. A file that two of them share is read once, at its first place."""
    done = set() if done is None else done
    real, name = path.resolve(), short(path)
    if real in done:
        return []
    done.add(real)
    node = parse(read_text(path), name)
    if node is None:
        raise RecipeError(f"{name}: empty, expected a recipe; `launch.py cp breast {path.name}` writes one to edit")
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{place(node, name)}: expected a mapping (data: ..., model: ..., losses: ...)")
    problems: list[str] = []
    layer = Layer()
    layer.tree = read_node(node, (), name, layer.origins, problems)
    at = layer.origins.get(("_base_",), name)
    bases = [(at, item) for item in _texts(layer, "_base_", problems)]
    layer.plugin_files = tuple((path.parent / item).resolve() for item in _texts(layer, "plugins", problems))
    layers: list[Layer] = []
    for at, base in bases:
        try:
            below = _base(base, path, at)
            way = [*above, real, below.resolve()]
            if way[-1] in way[:-1]:
                circle = " -> ".join(short(p) for p in way[way.index(way[-1]) :])
                raise RecipeError(f"{at}: _base_: based on itself: {circle}")
            layers += read_layers(below, (*above, real), done)
        except RecipeError as error:
            problems += error.lines
    for section in [s for s in GROUPS if isinstance(layer.tree.get(s), str)]:
        try:
            at = layer.origins.pop((section,))
            layers += read_group(section, layer.tree.pop(section), path, f"{at}: {section}")
        except RecipeError as error:
            problems += error.lines
    if problems:
        raise RecipeError(*problems)
    return [*layers, layer]


def _base(named: str, path: Path, at: str) -> Path:
    if named.startswith(SHIPPED):
        try:
            return find_shipped(named.removeprefix(SHIPPED))
        except RecipeError as error:
            raise RecipeError(f"{at}: _base_: {error}") from None
    base = path.parent / named
    if not base.exists():
        near = [p.name for p in base.parent.glob("*.yaml")] if base.parent.is_dir() else []
        raise RecipeError(f"{at}: _base_: no such file: {short(base)}.{did_you_mean(base.name, near)}")
    return base


def read_group(section: str, named: str, path: Path, at: str) -> list[Layer]:
    """The layers of `data: NAME`: a file NAME.yaml in the folder `data` beside the recipe, or else among the shipped.

    Args:
        path: the recipe that names it.
        at: what a complaint begins with.

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
        guess = f".{did_you_mean(named, known)}" if known else ""
        raise RecipeError(f"{at}: found the text {named!r}, expected a mapping (key: value){files}{guess}")
    layers = read_layers(known[named])
    own = (section, "_base_", "plugins")
    strange = [where for layer in layers for key, where in layer.origins.items() if key[0] not in own]
    if strange:
        raise RecipeError(f"{strange[0]}: a file of {section}/ sets {section} alone, since `{section}=` chooses it")
    return layers


def _texts(layer: Layer, key: str, problems: list[str]) -> list[str]:
    """The paths that `_base_` or `plugins` names. Takes the key out."""
    if key not in layer.tree:
        return []
    value = layer.tree.pop(key)
    values = as_paths(value)
    if values is None:
        problems.append(f"{layer.origins[(key,)]}: {key}: found {value!r}, expected a path or a list of paths")
    return values or []


def as_paths(value: Any) -> list[str] | None:
    """One path or a list of them, as a list; None where it is neither."""
    values = [value] if isinstance(value, str) else value
    return values if isinstance(values, list) and all(isinstance(item, str) and item for item in values) else None
