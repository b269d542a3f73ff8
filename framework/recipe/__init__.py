"""A recipe tells a whole run: YAML files and overrides in, one frozen and complete `Recipe` out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from framework.recipe.check import check_recipe
from framework.recipe.merge import merge, override_layer, slots
from framework.recipe.schema import NO_TOPICS, Choice, Loss, Optimizer, Recipe
from framework.recipe.source import RECIPES, RecipeError, dotted, find_file, read_layers
from framework.registry import catalogue, did_you_mean, find, short
from framework.signature import RESERVED

__all__ = [
    "NO_TOPICS",
    "RECIPES",
    "Choice",
    "Loss",
    "Optimizer",
    "Recipe",
    "RecipeError",
    "explain_rows",
    "load_recipe",
    "recipe_hash",
    "save",
    "where_from",
]

# Where a run lies, and how fast it is, but not what it computes.
NOT_THE_RESULT = (("run",), ("resume",), ("plugins",), ("data", "cache"), ("data", "workers"))
# Texts that no YAML reader takes for anything else. The others are written in quotes.
BARE = re.compile(r"[A-Za-z_/][\w./-]*\Z", re.ASCII)
NOT_BARE = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def load_recipe(named: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Loads a recipe file, or a shipped recipe by its name, with `key=value` overrides on top.

    Raises:
        RecipeError: everything that is wrong with it, one line a mistake.
    """
    path = find_file(named)
    problems: list[str] = []
    layers = []
    for read in (lambda: read_layers(path), lambda: [override_layer(overrides)]):
        try:
            layers += read()
        except RecipeError as error:
            problems += error.lines
    if problems:
        raise RecipeError(*problems)
    return check_recipe(merge(layers), path)


def _plain(value: Any) -> Any:
    """A recipe as its YAML says it: a plugin's keys stand beside its name."""
    if isinstance(value, Choice):
        beside = {name: getattr(value, name) for name in type(value).model_fields if name != "keys"}
        if isinstance(value, Loss):
            del beside["name"]  # its key in `losses`
        return {**beside, **_plain(value.keys)}
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    bare = BARE.match(value) and value.lower() not in NOT_BARE
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if bare else '"')


_Dumper.add_representer(str, _text)


def save(recipe: Recipe) -> str:
    """YAML of the whole recipe, every default written out, which loads back to an equal recipe."""
    return yaml.dump(_plain(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def recipe_hash(recipe: Recipe) -> str:
    """12 hex digits that change with anything that may change the result.

    Plugin files count by what they say, not by where they lie.
    """
    plain = _plain(recipe)
    for key in NOT_THE_RESULT:
        block = plain
        for part in key[:-1]:
            block = block[part]
        block.pop(key[-1])
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in recipe.plugin_files]
    text = json.dumps([plain, files], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def where_from(recipe: Recipe, key: str) -> tuple[Any, str]:
    """A value by its dotted key, and the file and line, override or default it comes from.

    Raises:
        RecipeError: the recipe has no such key.
    """
    plain = _plain(recipe)
    parts = key.split(".")
    value = plain
    for part in parts:
        try:
            value = value[int(part) if isinstance(value, list) else part]
        except (KeyError, IndexError, TypeError, ValueError):
            guess = did_you_mean(key, _dotted_keys(plain))
            raise RecipeError(f"{short(recipe.path)}: it has no key '{key}'.{guess}") from None
    block = ".".join(parts[:-1])
    if key in recipe.origins:
        return value, recipe.origins[key]
    if parts[-1] == "name" and block in recipe.origins:
        return value, recipe.origins[block]  # `distiller: lda`, without a block
    for slot, kind, choice in slots(plain):
        if dotted(slot) == block and choice is not None and parts[-1] not in RESERVED.get(kind, {"name"}):
            name = str(slot[-1]) if kind == "loss" else choice["name"]
            if (kind, name) in catalogue(recipe.plugin_files) and parts[-1] != "name":
                return value, f"default of {kind}/{name} ({find(kind, name, recipe.plugin_files).where})"
    return value, "default of framework/recipe/schema.py"


def explain_rows(recipe: Recipe, key: str) -> list[tuple[str, str, str]]:
    """Key, value and origin of a value, or of every value in a block."""
    value, where = where_from(recipe, key)
    if not isinstance(value, dict):
        return [(key, json.dumps(value, ensure_ascii=False), where)]
    return [row for name in value for row in explain_rows(recipe, f"{key}.{name}")]


def _dotted_keys(value: Any, above: str = "") -> list[str]:
    if not isinstance(value, dict):
        return []
    here = [f"{above}{name}" for name in value]
    return here + [inner for name, item in value.items() for inner in _dotted_keys(item, f"{above}{name}.")]
