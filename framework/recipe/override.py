"""Reads what is typed behind a recipe: `data=NAME`, `key=value`, `~key` and `+key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.recipe.merge import write_names_out
from framework.recipe.source import (
    GROUPS,
    Key,
    Layer,
    RecipeError,
    as_paths,
    forget,
    nested,
    parse,
    read_group,
    read_node,
)


def override_layers(overrides: Sequence[str], recipe: Path) -> list[Layer]:
    """The layers on top of a recipe: first whole groups, then what is taken out, what is set, and what is added.

    Within each of these the last word wins. A value is read as in a recipe file.

    Raises:
        RecipeError: every word that does not read.
    """
    groups: list[Layer] = []
    values, additions = Layer(), Layer()
    problems: list[str] = []
    for word in overrides:
        try:
            sign = word[:1] if word[:1] in ("~", "+") else ""
            name, equals, text = word.removeprefix(sign).partition("=")
            where = f"override: {word}"
            key = _key(name, where)
            if sign == "~":
                if equals:
                    raise RecipeError(f"{where}: what is taken out has no value; expected ~{name.strip()}")
                values.removals.append((key, where))
                continue
            if not equals:
                raise RecipeError(f"{where}: expected key=value, such as train.epochs=3")
            value, origins = _value(text, key, where)
            if key == ("plugins",):
                values.plugin_files += _files(value, where)
                values.origins[key] = where
            elif sign == "+":
                additions.additions.append((key, value, where))
            elif len(key) == 1 and key[0] in GROUPS and isinstance(value, str):
                groups += read_group(str(key[0]), value, recipe, where)
            else:
                _set(values, key, value, dict.fromkeys([*origins, key], where))
        except RecipeError as error:
            problems += error.lines
    if problems:
        raise RecipeError(*problems)
    return [*groups, values, additions]


def _key(name: str, where: str) -> Key:
    key: Key = tuple(name.strip().split("."))
    if not all(key):
        raise RecipeError(f"{where}: expected key=value, such as train.epochs=3")
    if key[0] == "_base_":
        raise RecipeError(f"{where}: _base_ stands in a file; name another recipe instead")
    return key


def _value(text: str, key: Key, where: str) -> tuple[Any, dict[Key, str]]:
    origins: dict[Key, str] = {}
    problems: list[str] = []
    try:
        node = parse(text, "value")
        value = None if node is None else read_node(node, key, "value", origins, problems)
    except RecipeError as error:
        problems += error.lines
    if problems:
        raise RecipeError(*[f"{where}: {problem}" for problem in problems])
    return value, origins


def _files(value: Any, where: str) -> tuple[Path, ...]:
    files = as_paths(value)
    if files is None:
        raise RecipeError(f"{where}: expected a path or a list of paths")
    return tuple(Path(item).resolve() for item in files)


def _set(layer: Layer, key: Key, value: Any, origins: dict[Key, str]) -> None:
    """Puts a value where earlier words may stand already: mappings are merged, everything else is replaced."""
    tree = nested(key, value)
    write_names_out(tree)

    def join(old: dict[str, Any], new: dict[str, Any], above: Key) -> None:
        for name, item in new.items():
            here = (*above, name)
            if isinstance(item, dict) and isinstance(old.get(name), dict):
                join(old[name], item, here)
                continue
            forget(layer.origins, here)
            old[name] = item

    join(layer.tree, tree, ())
    layer.origins.update(origins)
