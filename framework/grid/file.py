"""Reads a grid file: its schema, and the place of each value, so that an error can name its line."""

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
    dotted,
    find_shipped,
    parse,
    place,
    read_node,
    read_text,
)
from framework.registry import did_you_mean, short
from framework.runtime.errors import Problem, UserError

LABEL = "label"  # key of an included cell
BASELINE = "baseline"  # label of the unchanged recipe in `ablate`

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Prune(Section):
    """When a trial of a search is stopped early."""

    after_epochs: PositiveInt = 1
    """Number of validations before a trial can be pruned."""


class Search(Section):
    """Trials instead of all combinations."""

    method: Literal["random", "tpe"] = "random"
    """random: all drawn in advance; tpe: each proposed from the scores of earlier trials (Optuna)."""
    trials: PositiveInt
    """Number of trials."""
    seed: Seed = 0
    """Random seed of the search."""
    monitor: str | None = None
    """Score on val to optimize; null: the recipe's evaluate.monitor."""
    keys: dict[str, Any]
    """A range {low, high, log, step} or choices, for each dotted key of the recipe."""
    prune: Prune | None = None
    """Stops trials that are worse than the median of the others at the same validation; null disables. With tpe."""


class Report(Section):
    """The result table."""

    metrics: tuple[str, ...] = ()
    """Scores such as test/bleu_4, in the order of the columns; empty: the recipe's monitor, on test."""
    baseline: str | dict[str, Any] | None = None
    """Row that the others are compared with: its label, or {axis: value}; null: the first row."""
    compare: Literal["paired_bootstrap", "none"] = "paired_bootstrap"
    """Significance test of differences to the baseline."""


class GridFile(Section):
    """An ablation: a recipe, the changes to it, and the result table."""

    recipe: str
    """Recipe of every cell: a file, relative to this one, or shipped:NAME."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted recipe keys with the same value in every cell."""
    axes: dict[str, list[Any] | dict[str, Any]] = Field(default_factory=dict)
    """All combinations. A dotted recipe key has a list of values, or labels and values; an axis with any other name has
    labels and the keys that each sets.
    """
    zip: dict[str, list[Any] | dict[str, Any]] = Field(default_factory=dict)
    """Like axes, but the first value of each goes with the first value of the others, and so on."""
    ablate: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Labels and the keys that each sets: one change at a time, next to the unchanged recipe."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Combinations to leave out: {axis: label or value, or a list of them}."""
    include: tuple[dict[str, Any], ...] = ()
    """Additional cells: {label: a text, and dotted keys}."""
    seeds: tuple[Seed, ...] = ()
    """Values of train.seed; each combination is trained with each. Empty: the recipe's seed."""
    search: Search | None = None
    """Trials instead of axes."""
    report: Report = Report()
    plugins: tuple[str, ...] = ()
    """Python files with your own executors, relative to this one. The recipe names other plugins."""
    executor: dict[str, Any] = Field(default_factory=lambda: {"name": "local"})
    """Plugin that starts the cells, and its keys."""
    attempts: PositiveInt = 3
    """How often a cell may crash (killed, out of memory, machine lost) before it counts as failed."""


@dataclass(frozen=True)
class ParsedGrid:
    """A grid file that matches the schema."""

    path: Path
    recipe: Path
    spec: GridFile
    origins: dict[Key, str] = field(default_factory=dict)  # "file:line:column" of every key and item

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def plugin_files(self) -> tuple[Path, ...]:
        return tuple((self.path.parent / file).resolve() for file in self.spec.plugins)

    def line(self, key: Key) -> str:
        """`file:line:column` of a key, or of the closest key that contains it."""
        return line(self.origins, key, short(self.path))

    def place(self, key: Key) -> str:
        """`file:line:column: dotted.key`"""
        return f"{self.line(key)}: {dotted(key)}"


def line(origins: dict[Key, str], key: Key, otherwise: str) -> str:
    return next((origins[key[:end]] for end in range(len(key), 0, -1) if key[:end] in origins), otherwise)


def shipped_grids() -> dict[str, Path]:
    """Shipped grids by name."""
    return {file.stem: file for file in sorted((RECIPES / GRIDS).glob("*.yaml"))}


def find_grid(named: str) -> Path:
    """Finds a grid file by path, or by the name of a shipped grid."""
    path = Path(named)
    if path.is_file():
        return path
    shipped, name = shipped_grids(), named.removeprefix(f"recipes/{GRIDS}/").removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    near = [str(file) for file in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
    guess = did_you_mean(named, near) or did_you_mean(name, shipped)
    hint = f"{guess} Shipped: {', '.join(shipped)}".strip()
    raise UserError("no-such-file", "no such grid file", place=named, hint=hint)


def read_grid(path: Path) -> ParsedGrid:
    """Reads a grid file, which is as untrusted as a recipe.

    Raises:
        UserError: with every violation of the schema.
    """
    name = short(path)
    node = parse(read_text(path), name)
    if not isinstance(node, yaml.MappingNode):
        at = name if node is None else place(node, name)
        expected = "a mapping: recipe: ..., and axes, zip, ablate, include or search"
        raise UserError("wrong-format", "found no mapping", place=at, expected=expected)
    origins: dict[Key, str] = {}
    problems: list[Problem] = []
    tree = read_node(node, (), name, origins, problems)
    try:
        spec = GridFile.model_validate(_with_tuples(tree), strict=True)
    except ValidationError as error:
        for key, problem in explain(error, tree, (), _known_keys):
            if problem.code == "unknown-key" and _of_recipe(key):
                problem = replace(problem, hint="Write keys of the recipe in axes or set.")
            problems.append(problem.at(f"{line(origins, key, name)}: {dotted(key)}"))
    if problems:
        raise UserError.of(problems)
    try:
        recipe = _recipe(spec.recipe, path)
    except UserError as error:
        at = f"{line(origins, ('recipe',), name)}: recipe"
        raise UserError.of(problem.at(at) for problem in error.problems) from None
    return ParsedGrid(path, recipe, spec, origins)


def _with_tuples(tree: dict[str, Any]) -> dict[str, Any]:
    """Strict validation takes only tuples where the schema has tuples."""
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
        hint = f"{did_you_mean(path.name, near)} Or write {SHIPPED}NAME, such as {SHIPPED}breast.".strip()
        raise UserError("no-such-file", f"no such file: {short(path)}", hint=hint)
    resolved = path.resolve()
    return RECIPES / resolved.relative_to(RECIPES) if resolved.is_relative_to(RECIPES) else path
