"""Cells: the recipes that a grid makes, each identified by the hash of what it computes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from framework.grid.file import ParsedGrid
from framework.recipe import NO_TOPICS, Recipe, recipe_hash
from framework.recipe.check import check_recipe
from framework.recipe.describe import as_yaml
from framework.recipe.merge import Merged, merge
from framework.recipe.override import override_layers
from framework.recipe.source import GROUPS, Key, Layer, nested, read_group, read_layers
from framework.registry import PluginError, find
from framework.registry.signature import needs
from framework.runtime.errors import UserError

FIXED_KEYS = ("run", "resume", "resume_ignore", "plugins", "_base_")  # the grid sets them; no cell may


def as_label(value: Any) -> str:
    """A value as a recipe would contain it."""
    return value if isinstance(value, str) else as_yaml(value)


def value_labels(values: Sequence[Any]) -> tuple[str, ...]:
    """Labels of unlabelled values; of plugins their names, with the keys in which plugins of one name differ."""
    labels = []
    for value in values:
        if not (isinstance(value, dict) and isinstance(value.get("name"), str)):
            labels.append(as_label(value))
            continue
        namesakes = [other for other in values if isinstance(other, dict) and other.get("name") == value["name"]]
        differing = [key for key in value if any(other.get(key, ...) != value[key] for other in namesakes)]
        labels.append(" ".join([value["name"], *(f"{key}={as_label(value[key])}" for key in differing)]))
    return tuple(labels)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The display name of each dotted key: `encoder.width` for model.encoder.width, or the whole key where two would
    have the same short name.
    """
    short = {key: key.split(".", 1)[-1] for key in keys}
    count = Counter(short.values())
    return {key: name if count[name] == 1 else key for key, name in short.items()}


def fingerprint(value: Any) -> str:
    """A text that is the same for equal values only: 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True)


@dataclass(frozen=True)
class Change:
    """One recipe key and its value in some cells."""

    key: str  # dotted
    value: Any
    at: Key  # of the value in the grid file


@dataclass(frozen=True)
class Option:
    """One value of an axis, or of several zipped axes."""

    labels: dict[str, str]  # axis -> label
    changes: tuple[Change, ...]
    values: dict[str, Any] = field(default_factory=dict)  # axis -> value, for axes over one key
    named: frozenset[str] = frozenset()  # axes with labels from the grid file, which are shown without the axis name

    def has(self, axis: str, wanted: Any) -> bool:
        """Whether the axis has this label or value, or one of a list of them."""
        if axis not in self.labels:
            return False
        if axis in self.values and fingerprint(wanted) == fingerprint(self.values[axis]):
            return True
        if isinstance(wanted, list):
            return any(self.has(axis, one) for one in wanted)
        return as_label(wanted) == self.labels[axis]


Combination = tuple[str, Sequence[Option]]  # label of a row, and its changes


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
        """Identifies the cell, whatever the name of the grid and the order of its cells."""
        return recipe_hash(self.recipe)

    @property
    def title(self) -> str:
        return f"{self.label}, seed {self.seed}"


class CellMaker:
    """Makes cells from the combinations of a grid."""

    def __init__(self, grid: ParsedGrid, overrides: Sequence[str] = ()) -> None:
        """
        Args:
            overrides: from the command line, for every cell.

        Raises:
            UserError: the grid's recipe, or `set`, cannot be read.
        """
        self.grid, self.overrides = grid, tuple(overrides)
        self.base = [*read_layers(grid.recipe), *self._layers(changes_of(grid.spec.set, ("set",)))]
        self.override_layers = override_layers(overrides, grid.recipe)

    def base_recipe(self) -> Recipe:
        """The recipe without the changes of any cell.

        Raises:
            UserError: it has mistakes.
        """
        return check_recipe(merge([*self.base, *self.override_layers]), self.grid.recipe)

    def cells(self, label: str, options: Sequence[Option], seeds: Sequence[int]) -> list[Cell]:
        """A combination under each seed; without seeds, under the recipe's own.

        Raises:
            UserError: the resulting recipe has mistakes.
        """
        settings = {axis: name for option in options for axis, name in option.labels.items()}
        changed = self._layers([change for option in options for change in option.changes])
        cells = []
        for seed in seeds or (None,):
            layers = [*self.base, *self.override_layers, *changed]
            if seed is not None:
                at = self.grid.line(("seeds",))
                layers.append(Layer({"train": {"seed": seed}}, {("train",): at, ("train", "seed"): at}))
            merged = merge(layers)
            notices = _disable_topic_losses(merged, changed)
            recipe = check_recipe(merged, self.grid.recipe)
            cells.append(Cell(label, settings, recipe.train.seed, recipe, notices))
        return cells

    def _layers(self, changes: Sequence[Change]) -> list[Layer]:
        """Changes as recipe layers whose origins are lines of the grid file."""
        layers: list[Layer] = []
        for change in changes:
            key: Key = tuple(change.key.split("."))
            at = self.grid.line(change.at)
            place = f"{at}: {change.key}"
            if not all(key):
                expected = "a dotted key of the recipe, such as distiller.topics"
                raise UserError("unknown-key", f"found {change.key!r}", place=place, expected=expected)
            if key[0] in FIXED_KEYS:
                found = f"the cells of a grid cannot differ in {key[0]}"
                raise UserError("unsupported", found, place=place, hint="Set it in the recipe.")
            if len(key) == 1 and key[0] in GROUPS and isinstance(change.value, str):
                layers += read_group(str(key[0]), change.value, self.grid.recipe, place)
                continue
            inside = {
                (*key, *place[len(change.at) :]): text
                for place, text in self.grid.origins.items()
                if place[: len(change.at)] == change.at
            }
            layers.append(Layer(nested(key, deepcopy(change.value)), {key: at, **inside}))
        return layers


def _disable_topic_losses(merged: Merged, changed: Sequence[Layer]) -> tuple[str, ...]:
    """Sets the weight of losses that need topics to 0 in a cell without a distiller, unless the cell sets them itself.

    Returns:
        A notice per loss.
    """
    distiller, losses = merged.tree.get("distiller"), merged.tree.get("losses")
    is_removed = any("distiller" in layer.tree for layer in changed)
    if not (
        is_removed and isinstance(distiller, dict) and distiller.get("name") == NO_TOPICS and isinstance(losses, dict)
    ):
        return ()
    set_by_cell = {name for layer in changed for name in layer.tree.get("losses", ())}
    notices = []
    for name, block in losses.items():
        if name in set_by_cell or not isinstance(block, dict) or block.get("weight") == 0:
            continue
        try:
            needed = needs(find("loss", name, merged.plugin_files))
        except PluginError:
            continue  # reported by check_recipe
        if "topics" in needed:
            block["weight"] = 0
            notices.append(f"losses.{name} is off where the distiller is {NO_TOPICS}: it needs topics")
    return tuple(notices)


def changes_of(values: dict[str, Any], at: Key) -> list[Change]:
    """The changes in a mapping from dotted keys to values at a place of the grid file."""
    return [Change(key, value, (*at, key)) for key, value in values.items()]


def cells_by_row(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Label -> cells, one per seed."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.label, []).append(cell)
    return rows
