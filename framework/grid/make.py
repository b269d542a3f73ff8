"""Makes a grid of a grid file: all its cells, checked whole before the first of them is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.grid.axes import ABLATE, Combination, read_axes
from framework.grid.cells import Cell, CellMaker, Change, Option
from framework.grid.executors import choose_executor
from framework.grid.file import ReadGrid
from framework.grid.labels import names_of
from framework.grid.scores import problem_with
from framework.grid.search import AT_RANDOM
from framework.grid.space import Choices, Space, label_of, random_trials, read_space
from framework.recipe import Recipe, RecipeError
from framework.recipe.source import Key, dotted, is_within
from framework.registry import short

SEED = "train.seed"
SHOWN = 3  # rows that a complaint names


@dataclass(frozen=True)
class Grid:
    """A grid with its cells, all of them good recipes."""

    read: ReadGrid
    base: Recipe  # of every cell, before anything is changed in it
    axes: dict[str, tuple[str, ...]]  # axis -> labels, in the order of the file
    cells: tuple[Cell, ...]  # rows one after another, the seeds of each together; none yet of a search by TPE
    baseline: str | None  # label of the row that the others are compared with
    maker: CellMaker
    space: Space | None = None  # of a search
    notices: tuple[str, ...] = ()  # what was done that its author may not expect

    @property
    def name(self) -> str:
        return self.read.name

    @property
    def folder(self) -> Path:
        return Path(self.base.run.root) / "grids" / self.name


def make_grid(read: ReadGrid, overrides: Sequence[str] = ()) -> Grid:
    """The cells of a grid.

    Raises:
        RecipeError: whatever is wrong in any of them, one line a mistake.
    """
    choose_executor(read)
    maker = CellMaker(read, overrides)
    if read.said.search is not None:
        return _searched(maker)
    stated = read_axes(read)
    _overrides_count(maker, stated.combinations)
    cells = _checked(maker, stated.combinations)
    _scores_are_known(read, [cell.recipe for cell in cells])
    notices = tuple(dict.fromkeys(notice for cell in cells for notice in cell.notices))
    return Grid(read, maker.base_recipe(), stated.axes, cells, stated.baseline, maker, notices=notices)


def _searched(maker: CellMaker) -> Grid:
    """A search: its trials, if they can be known beforehand. What its keys can be is checked in any case."""
    read, search = maker.grid, maker.grid.said.search
    assert search is not None, read.path
    problems = [
        f"{read.where((word,))}: {word}: a search has its keys in search.keys; take {word} out"
        for word in ("axes", "zip", ABLATE, "include", "exclude")
        if getattr(read.said, word)
    ]
    if len(read.said.seeds) > 1:
        problems.append(f"{read.where(('seeds',))}: seeds: a search trains each trial once; expected one seed at most")
    if search.prune is not None and search.method != "tpe":
        problems.append(
            f"{read.where(('search', 'prune'))}: search.prune: is for method: tpe, which hears of validations"
        )
    if search.monitor is not None and search.method != "tpe":
        at = read.where(("search", "monitor"))
        problems.append(f"{at}: search.monitor: is for method: tpe; what is drawn at random depends on no score")
    if read.said.report.baseline is not None:
        problems.append(f"{read.where(('report', 'baseline'))}: report.baseline: a search has none; take it out")
    keys: Key = ("search", "keys")

    def complain(inside: tuple[str | int, ...], text: str) -> None:
        key = (*keys, *inside)
        problems.append(f"{read.where(key)}: {dotted(key)}: {text}")

    space = read_space(search.keys, complain)
    if problems:
        raise RecipeError(*problems)
    extremes = [
        (label_of(key, value, space), [Option({}, (Change(key, value, (*keys, key)),))])
        for key, part in space.items()
        for value in (part.values if isinstance(part, Choices) else (part.low, part.high))
    ]
    _overrides_count(maker, extremes)
    _good_cells(maker, extremes)
    base = maker.base_recipe()
    _scores_are_known(read, [base])
    names = names_of(space)
    cells: tuple[Cell, ...] = ()
    if search.method == "random":
        cells = _checked(maker, [_trial(space, each) for each in random_trials(space, search.trials, search.seed)])
    axes = {names[key]: tuple(dict.fromkeys(cell.settings[names[key]] for cell in cells)) for key in space}
    notices = [notice for cell in cells for notice in cell.notices]
    if search.method == "tpe" and search.trials <= AT_RANDOM:
        notices.append(f"the first {AT_RANDOM} trials of tpe are drawn at random, and search.trials is {search.trials}")
    return Grid(read, base, axes, cells, None, maker, space, tuple(dict.fromkeys(notices)))


def _trial(space: Space, values: dict[str, Any]) -> Combination:
    """Label and changes of a trial."""
    names = names_of(space)
    labels = {names[key]: space[key].label(value) for key, value in values.items()}
    changes = tuple(Change(key, value, ("search", "keys", key)) for key, value in values.items())
    return ", ".join(label_of(key, value, space) for key, value in values.items()), [Option(labels, changes)]


def search_cell(maker: CellMaker, space: Space, values: dict[str, Any]) -> Cell:
    """The cell of a trial.

    Raises:
        RecipeError: its values do not go together.
    """
    label, options = _trial(space, values)
    return maker.cells(label, options, maker.grid.said.seeds)[0]


def _changed(combinations: Sequence[Combination]) -> dict[str, Key]:
    """Keys of the recipe that some cells set, and where in the grid file."""
    return {change.key: change.at for _, options in combinations for option in options for change in option.changes}


def _overrides_count(maker: CellMaker, combinations: Sequence[Combination]) -> None:
    """Refuses a word behind the grid that the grid's own values would hide."""
    changed = {*_changed(combinations), *([SEED] if maker.grid.said.seeds else [])}
    for word in maker.overrides:
        key = word.lstrip("~+").partition("=")[0].strip()
        for other in changed:
            if is_within(key, other):
                raise RecipeError(f"override: {word}: the grid sets {other} in its cells, so this would have no effect")


def _values_count(read: ReadGrid, combinations: Sequence[Combination]) -> None:
    """Refuses values that others of the same file would hide in every cell."""
    seeds, problems = read.said.seeds, []
    for index, seed in enumerate(seeds):
        if seed in seeds[:index]:
            problems.append(f"{read.where(('seeds', index))}: seeds: {seed} stands twice")
    changed = {**_changed(combinations), **{key: ("set", key) for key in read.said.set}}
    if seeds and SEED in changed:
        at = changed[SEED]
        problems.append(f"{read.where(at)}: {SEED}: seeds are given as well, and would hide it; take one of them out")
    for key in read.said.set:
        if key in {*read.said.axes, *read.said.zip}:
            problems.append(
                f"{read.where(('set', key))}: set.{key}: is an axis as well, which would hide it; take it out"
            )
    if problems:
        raise RecipeError(*problems)


def _checked(maker: CellMaker, combinations: Sequence[Combination]) -> tuple[Cell, ...]:
    """All cells, no two of which compute the same."""
    grid = maker.grid
    _values_count(grid, combinations)
    cells = _good_cells(maker, combinations)
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.digest, cell)
        if other is not cell:
            raise RecipeError(
                f"{short(grid.path)}: '{other.title}' and '{cell.title}' compute the same: what they differ in has no "
                "effect on a result. Exclude one of them"
            )
    return tuple(cells)


def _good_cells(maker: CellMaker, combinations: Sequence[Combination]) -> list[Cell]:
    """The cells. What is wrong in some of them is told once, with the rows that it is wrong in."""
    problems: dict[str, list[str]] = {}
    cells: list[Cell] = []
    for label, options in combinations:
        try:
            cells += maker.cells(label, options, maker.grid.said.seeds)
        except RecipeError as error:
            for line in error.lines:
                problems.setdefault(line, []).append(label)
    if problems:
        raise RecipeError(*[_with_rows(line, rows, len(combinations)) for line, rows in problems.items()])
    return cells


def _with_rows(line: str, rows: Sequence[str], of: int) -> str:
    rows = list(dict.fromkeys(rows))
    if len(rows) == of:
        return line
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"{line} (in {'; '.join(rows[:SHOWN])}{more})"


def _scores_are_known(read: ReadGrid, recipes: Sequence[Recipe]) -> None:
    problems = [
        f"{read.where(('report', 'metrics', index))}: report.metrics.{index}: {problem}"
        for index, metric in enumerate(read.said.report.metrics)
        if (problem := problem_with(metric, recipes))
    ]
    monitor = read.said.search.monitor if read.said.search is not None else None
    if monitor is not None and (problem := problem_with(monitor, recipes, ["val"])):
        problems.append(f"{read.where(('search', 'monitor'))}: search.monitor: {problem}")
    if problems:
        raise RecipeError(*problems)
