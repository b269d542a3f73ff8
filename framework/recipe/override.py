"""Reads the overrides of a command line: `data=NAME`, `key=value`, `~key` and `+key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.recipe.merge import expand_names
from framework.recipe.source import (
    GROUPS,
    Key,
    Layer,
    RecipeError,
    as_paths,
    expanded,
    forget,
    nested,
    parse,
    read_group,
    read_node,
)
from framework.runtime.errors import Problem
from framework.runtime.files import real_path

EXAMPLE = "key=value, such as train.epochs=3"


def override_layers(overrides: Sequence[str], recipe: Path) -> list[Layer]:
    """The layers on top of a recipe: first groups, then removals, values and additions.

    Within each of these the last one wins. A value is read as in a recipe file.

    Raises:
        RecipeError: the problems of all overrides.
    """
    groups: list[Layer] = []
    values, additions = Layer(), Layer()
    problems: list[Problem] = []
    for word in overrides:
        try:
            sign = word[:1] if word[:1] in ("~", "+") else ""
            name, equals, text = word.removeprefix(sign).partition("=")
            where = f"override: {word}"
            key = _key(name, where)
            if sign == "~":
                if equals:
                    raise RecipeError("wrong-format", "~ takes no value", place=where, expected=f"~{name.strip()}")
                values.removals.append((key, where))
                continue
            if not equals:
                raise RecipeError("wrong-format", "no = in it", place=where, expected=EXAMPLE)
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
            problems += error.problems
    if problems:
        raise RecipeError.of(problems)
    return [*groups, values, additions]


def _key(name: str, where: str) -> Key:
    key: Key = tuple(name.strip().split("."))
    if not all(key):
        raise RecipeError("wrong-format", "no key in it", place=where, expected=EXAMPLE)
    if key[0] == "_base_":
        raise RecipeError("unsupported", "_base_ is for files", place=where, hint="Name another recipe instead.")
    return key


def _value(text: str, key: Key, where: str) -> tuple[Any, dict[Key, str]]:
    origins: dict[Key, str] = {}
    problems: list[Problem] = []
    try:
        node = parse(text, "value")
        value = None if node is None else read_node(node, key, "value", origins, problems)
    except RecipeError as error:
        problems += error.problems
    if problems:
        raise RecipeError.of([problem.at(where) for problem in problems])
    return value, origins


def _files(value: Any, where: str) -> tuple[Path, ...]:
    files = as_paths(value)
    if files is None:
        raise RecipeError("wrong-type", f"found {value!r}", place=where, expected="a path or a list of paths")
    return tuple(real_path(expanded(item)) for item in files)


def _set(layer: Layer, key: Key, value: Any, origins: dict[Key, str]) -> None:
    """Sets a value on top of earlier overrides: mappings are merged, everything else is replaced."""
    tree = nested(key, value)
    expand_names(tree)

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
