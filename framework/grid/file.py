"""Reads a grid file: what it may say, and where each value stands, so that a complaint can name its line."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError

from framework.recipe.check import explain
from framework.recipe.schema import Recipe, Section
from framework.recipe.source import (
    GRIDS,
    RECIPES,
    SHIPPED,
    Key,
    RecipeError,
    dotted,
    find_shipped,
    parse,
    place,
    read_node,
    read_text,
)
from framework.registry import did_you_mean, short
from framework.runtime.errors import Problem

LABEL = "label"  # of an included cell, beside its keys
BASELINE = "baseline"  # of `ablate`: the recipe as it is

Values = dict[str, Any]  # dotted recipe keys, and what they are set to
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Prune(Section):
    """When a trial of a search is given up."""

    after_epochs: PositiveInt = 1
    """Validations that a trial has in any case."""


class Search(Section):
    """Trials in place of all combinations."""

    method: Literal["random", "tpe"] = "random"
    """random: drawn beforehand; tpe: each from what the ones before scored (Optuna)."""
    trials: PositiveInt
    """How many."""
    seed: Seed = 0
    """Where the draws begin."""
    monitor: str | None = None
    """The score on val that is searched for; null: the recipe's evaluate.monitor."""
    keys: dict[str, Any]
    """A range {low, high, log, step} or choices, for each dotted key of the recipe."""
    prune: Prune | None = None
    """Gives up trials that are worse than half of the others at the same validation; null: none. With tpe."""


class Report(Section):
    """What the table shows."""

    metrics: tuple[str, ...] = ()
    """Scores such as test/bleu_4, in the order of the columns; none: the recipe's monitor, on test."""
    baseline: str | dict[str, Any] | None = None
    """The row that others are compared with: its label, or {axis: value}; null: the first row."""
    compare: Literal["paired_bootstrap", "none"] = "paired_bootstrap"
    """How a difference to the baseline is judged."""


class GridFile(Section):
    """An ablation: a recipe, what is changed in it, and what is shown in the end."""

    recipe: str
    """The recipe of every cell: a file, relative to this one, or shipped:NAME."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of the recipe that are the same in every cell."""
    axes: dict[str, list[Any] | dict[str, Any]] = Field(default_factory=dict)
    """All combinations: for each dotted key its values, or labels and values; under any other name, labels and what
    keys each sets.
    """
    zip: dict[str, list[Any] | dict[str, Any]] = Field(default_factory=dict)
    """As axes, but the first value of each with the first of the others, and so on."""
    ablate: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Labels, and what keys each sets: one change at a time, beside the recipe as it is."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Combinations that are left out: {axis: label or value, or a list of them}."""
    include: tuple[dict[str, Any], ...] = ()
    """Cells beside the combinations: {label: a text, and dotted keys}."""
    seeds: tuple[Seed, ...] = ()
    """train.seed of the cells: each combination is trained with each; none: the recipe's."""
    search: Search | None = None
    """Trials in place of axes."""
    report: Report = Report()
    plugins: tuple[str, ...] = ()
    """Python files with executors of your own, relative to this one. Other plugins stand in the recipe."""
    executor: dict[str, Any] = Field(default_factory=lambda: {"name": "local"})
    """The plugin that starts the cells, and its keys."""
    attempts: PositiveInt = 3
    """How often a cell may die (killed, out of memory, machine lost) before it counts as failed."""


@dataclass(frozen=True)
class ReadGrid:
    """A grid file that says what it may."""

    path: Path
    recipe: Path
    said: GridFile
    origins: dict[Key, str] = field(default_factory=dict)  # "file:line:column" of every key and item

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def plugin_files(self) -> tuple[Path, ...]:
        return tuple((self.path.parent / file).resolve() for file in self.said.plugins)

    def where(self, key: Key) -> str:
        """Where a key stands, or else what it would stand in."""
        return where(self.origins, key, short(self.path))


def where(origins: dict[Key, str], key: Key, otherwise: str) -> str:
    return next((origins[key[:end]] for end in range(len(key), 0, -1) if key[:end] in origins), otherwise)


def shipped_grids() -> dict[str, Path]:
    """The grids that come with the package, by name."""
    return {file.stem: file for file in sorted((RECIPES / GRIDS).glob("*.yaml"))}


def find_grid(named: str) -> Path:
    """The file of a grid, by path or by its name among the shipped ones."""
    path = Path(named)
    if path.is_file():
        return path
    shipped, name = shipped_grids(), named.removeprefix(f"recipes/{GRIDS}/").removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    near = [str(file) for file in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
    guess = did_you_mean(named, near) or did_you_mean(name, shipped)
    raise RecipeError(f"{named}: no such grid file.{guess} Shipped: {', '.join(shipped)}")


def read_grid(path: Path) -> ReadGrid:
    """Reads a grid file, untrusted as recipes are.

    Raises:
        RecipeError: everything that is wrong with its form, one line a mistake.
    """
    name = short(path)
    node = parse(read_text(path), name)
    if not isinstance(node, yaml.MappingNode):
        at = name if node is None else place(node, name)
        raise RecipeError(f"{at}: expected a grid: recipe: ..., and axes, zip, ablate, include or search")
    origins: dict[Key, str] = {}
    problems: list[Problem] = []
    tree = read_node(node, (), name, origins, problems)
    try:
        said = GridFile.model_validate(_with_tuples(tree), strict=True)
    except ValidationError as error:
        for key, problem in explain(error, tree, (), _known_keys):
            if problem.code == "unknown-key" and _of_recipe(key):
                problem = replace(problem, hint="A key of the recipe stands in axes or set.")
            problems.append(problem.at(f"{where(origins, key, name)}: {dotted(key)}"))
    if problems:
        raise RecipeError.of(problems)
    try:
        recipe = _recipe(said.recipe, path)
    except RecipeError as error:
        at = f"{where(origins, ('recipe',), name)}: recipe"
        raise RecipeError.of([problem.at(at) for problem in error.problems]) from None
    return ReadGrid(path, recipe, said, origins)


def _with_tuples(tree: dict[str, Any]) -> dict[str, Any]:
    """Lists as the schema wants them."""
    lists = ("exclude", "include", "seeds", "plugins")
    tree = {key: tuple(value) if key in lists and isinstance(value, list) else value for key, value in tree.items()}
    report = tree.get("report")
    if isinstance(report, dict) and isinstance(report.get("metrics"), list):
        tree["report"] = {**report, "metrics": tuple(report["metrics"])}
    return tree


def _known_keys(at: Key) -> list[str]:
    models: dict[Key, Any] = {(): GridFile, ("report",): Report, ("search",): Search, ("search", "prune"): Prune}
    model = models.get(at)
    return list(model.model_fields) if model is not None else []


def _of_recipe(key: Key) -> bool:
    return len(key) == 1 and str(key[0]).split(".")[0] in Recipe.model_fields


def _recipe(named: str, grid: Path) -> Path:
    if named.startswith(SHIPPED):
        return find_shipped(named.removeprefix(SHIPPED))
    path = grid.parent / named
    if not path.is_file():
        near = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise RecipeError(
            f"no such file: {short(path)}.{did_you_mean(path.name, near)} Or {SHIPPED}NAME, as {SHIPPED}breast"
        )
    resolved = path.resolve()
    return RECIPES / resolved.relative_to(RECIPES) if resolved.is_relative_to(RECIPES) else path
