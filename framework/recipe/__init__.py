"""A recipe tells a whole run: YAML files and overrides in, one frozen and complete `Recipe` out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from framework.recipe.check import check_recipe
from framework.recipe.merge import merge
from framework.recipe.override import override_layers
from framework.recipe.saved import recipe_hash, result_tree, save
from framework.recipe.schema import NO_TOPICS, Choice, Loss, Optimizer, Recipe
from framework.recipe.source import RECIPES, Layer, RecipeError, find_file, read_layers

__all__ = [
    "NO_TOPICS",
    "RECIPES",
    "Choice",
    "Loss",
    "Optimizer",
    "Recipe",
    "RecipeError",
    "load_recipe",
    "recipe_hash",
    "result_tree",
    "save",
]


def load_recipe(named: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Loads a recipe file, or a shipped recipe by its name, with overrides on top (`data=NAME`, `key=value`, `~key`,
    `+key=value`).

    Raises:
        RecipeError: everything that is wrong with it, one line a mistake.
    """
    path = find_file(named)
    problems: list[str] = []
    layers: list[Layer] = []
    for read in (lambda: read_layers(path), lambda: override_layers(overrides, path)):
        try:
            layers += read()
        except RecipeError as error:
            problems += error.lines
    if problems:
        raise RecipeError(*problems)
    recipe = check_recipe(merge(layers), path)
    recipe._overrides = tuple(overrides)
    return recipe
