"""Recipes: `load_recipe` reads YAML files and overrides, and returns a frozen, complete `Recipe`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from framework.recipe.check import check_recipe
from framework.recipe.merge import merge
from framework.recipe.override import override_layers
from framework.recipe.saved import PortableRecipe, portable, recipe_hash, result_tree, save
from framework.recipe.schema import NO_TOPICS, Choice, Loss, Optimizer, Recipe
from framework.recipe.source import RECIPES, Layer, RecipeError, check_format, find_file, read_layers, read_text
from framework.registry import short
from framework.registry.trust import mark_as_named, mark_as_saved, mark_command
from framework.runtime.errors import Problem

__all__ = [
    "NO_TOPICS",
    "RECIPES",
    "Choice",
    "Loss",
    "Optimizer",
    "PortableRecipe",
    "Recipe",
    "RecipeError",
    "load_recipe",
    "load_saved_recipe",
    "portable",
    "recipe_hash",
    "result_tree",
    "save",
]


def load_recipe(named: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Loads a recipe file, or a shipped recipe by its name, with overrides (`data=NAME`, `key=value`, `~key`,
    `+key=value`).

    Raises:
        RecipeError: all problems of the recipe.
    """
    path = find_file(named)
    problems: list[Problem] = []
    layers: list[Layer] = []
    for read in (lambda: read_layers(path), lambda: override_layers(overrides, path)):
        try:
            layers += read()
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError.of(problems)
    recipe = check_recipe(merge(layers), path)
    is_saved = _is_saved(path)
    (mark_as_saved if is_saved else mark_as_named)(recipe.plugin_files)
    for command in recipe.commands:
        mark_command(command, saved=is_saved and not any(command in word for word in overrides))
    recipe._overrides = tuple(overrides)
    return recipe


def load_saved_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Loads the recipe that a run saved, with overrides.

    Raises:
        RecipeError: another version saved it, or it has other problems.
    """
    if not _is_saved(path):
        check_format(None, short(path))
    return load_recipe(path, overrides)


def _is_saved(path: Path) -> bool:
    return re.search(r"^format:", read_text(path), re.MULTILINE) is not None
