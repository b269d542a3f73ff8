"""Cells: recipes that a grid makes of its own, each known by the hash of what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from framework.grid.file import ReadGrid
from framework.grid.labels import as_label, fingerprint
from framework.recipe import NO_TOPICS, Recipe, RecipeError, recipe_hash
from framework.recipe.check import check_recipe
from framework.recipe.merge import Merged, merge
from framework.recipe.override import override_layers
from framework.recipe.source import GROUPS, Key, Layer, nested, read_group, read_layers
from framework.registry import PluginError, find
from framework.registry.signature import needs

THE_GRIDS_OWN = ("run", "resume", "resume_ignore", "plugins", "_base_")  # keys that no cell may change


@dataclass(frozen=True)
class Change:
    """One key of the recipe and its value in some cells."""

    key: str  # dotted
    value: Any
    at: Key  # where the value stands in the grid file


@dataclass(frozen=True)
class Option:
    """One value of an axis, or of several that go together."""

    labels: dict[str, str]  # axis -> label
    changes: tuple[Change, ...]
    values: dict[str, Any] = field(default_factory=dict)  # axis -> value as it was written, where it is a single one
    named: frozenset[str] = frozenset()  # axes whose labels the author has chosen, so that they stand alone

    def has(self, axis: str, wanted: Any) -> bool:
        """Whether the axis stands at a label or value, or at one of a list of them."""
        if axis not in self.labels:
            return False
        if axis in self.values and fingerprint(wanted) == fingerprint(self.values[axis]):
            return True
        if isinstance(wanted, list):
            return any(self.has(axis, one) for one in wanted)
        return as_label(wanted) == self.labels[axis]


@dataclass(frozen=True)
class Cell:
    """One training run of a grid."""

    label: str  # of its row: the same for all seeds
    settings: dict[str, str]  # axis -> label
    seed: int
    recipe: Recipe
    notices: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """What the cell is known by, whatever the grid is called and in whatever order its cells stand."""
        return recipe_hash(self.recipe)

    @property
    def title(self) -> str:
        return f"{self.label}, seed {self.seed}"


class CellMaker:
    """Makes cells of the combinations of a grid."""

    def __init__(self, grid: ReadGrid, overrides: Sequence[str] = ()) -> None:
        """
        Args:
            overrides: words typed behind the grid, for every cell.

        Raises:
            RecipeError: the recipe of the grid, or what is the same in all its cells, does not read.
        """
        self.grid, self.overrides = grid, tuple(overrides)
        self.base = [*read_layers(grid.recipe), *self._layers(changes_of(grid.said.set, ("set",)))]
        self.typed = override_layers(overrides, grid.recipe)

    def base_recipe(self) -> Recipe:
        """The recipe that is the same in all cells.

        Raises:
            RecipeError: it has mistakes.
        """
        return check_recipe(merge([*self.base, *self.typed]), self.grid.recipe)

    def cells(self, label: str, options: Sequence[Option], seeds: Sequence[int]) -> list[Cell]:
        """A combination under each seed; the recipe's own where there are none.

        Raises:
            RecipeError: the recipe that comes out has mistakes.
        """
        settings = {axis: name for option in options for axis, name in option.labels.items()}
        changed = self._layers([change for option in options for change in option.changes])
        cells = []
        for seed in seeds or (None,):
            layers = [*self.base, *self.typed, *changed]
            if seed is not None:
                at = self.grid.where(("seeds",))
                layers.append(Layer({"train": {"seed": seed}}, {("train",): at, ("train", "seed"): at}))
            merged = merge(layers)
            notices = _drop_what_needs_topics(merged, changed)
            recipe = check_recipe(merged, self.grid.recipe)
            cells.append(Cell(label, settings, recipe.train.seed, recipe, notices))
        return cells

    def _layers(self, changes: Sequence[Change]) -> list[Layer]:
        """Changes as layers of a recipe, which tell the grid file's lines."""
        layers: list[Layer] = []
        for change in changes:
            key: Key = tuple(change.key.split("."))
            at = self.grid.where(change.at)
            if not all(key):
                raise RecipeError(
                    f"{at}: {change.key!r}: expected a dotted key of the recipe, such as distiller.topics"
                )
            if key[0] in THE_GRIDS_OWN:
                raise RecipeError(f"{at}: {change.key}: a grid's cells do not differ in {key[0]}; set it in the recipe")
            if len(key) == 1 and key[0] in GROUPS and isinstance(change.value, str):
                layers += read_group(str(key[0]), change.value, self.grid.recipe, f"{at}: {change.key}")
                continue
            inside = {
                (*key, *place[len(change.at) :]): text
                for place, text in self.grid.origins.items()
                if place[: len(change.at)] == change.at
            }
            layers.append(Layer(nested(key, deepcopy(change.value)), {key: at, **inside}))
        return layers


def _drop_what_needs_topics(merged: Merged, changed: Sequence[Layer]) -> tuple[str, ...]:
    """A cell whose distiller the grid takes away loses the terms that teach topics, unless the cell asks for them."""
    distiller, losses = merged.tree.get("distiller"), merged.tree.get("losses")
    taken_away = any("distiller" in layer.tree for layer in changed)
    if not (
        taken_away and isinstance(distiller, dict) and distiller.get("name") == NO_TOPICS and isinstance(losses, dict)
    ):
        return ()
    asked = {name for layer in changed for name in layer.tree.get("losses", ())}
    notices = []
    for name, block in losses.items():
        if name in asked or not isinstance(block, dict) or block.get("weight") == 0:
            continue
        try:
            needed = needs(find("loss", name, merged.plugin_files))
        except PluginError:
            continue  # told when the recipe is checked
        if "topics" in needed:
            block["weight"] = 0
            notices.append(f"losses.{name} is off where the distiller is {NO_TOPICS}: it needs topics")
    return tuple(notices)


def changes_of(values: dict[str, Any], at: Key) -> list[Change]:
    """Dotted keys and their values, as they stand at a place of the grid file."""
    return [Change(key, value, (*at, key)) for key, value in values.items()]


def rows_of(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Label -> cells, one a seed."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.label, []).append(cell)
    return rows
