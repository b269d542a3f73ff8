"""Makes the cells of a grid and checks all of them before any is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from framework.grid.axes import ABLATE, read_axes
from framework.grid.cells import Cell, CellMaker, Change, Combination, Option, short_names
from framework.grid.executor import choose_executor
from framework.grid.file import ParsedGrid
from framework.grid.scores import check_score
from framework.grid.space import Choices, Space, label_of, random_trials, read_space
from framework.grid.tpe import RANDOM_TRIALS
from framework.recipe import Recipe
from framework.recipe.source import Key, is_within
from framework.registry import short
from framework.runtime.errors import Problem, UserError

SEED = "train.seed"
MAX_ROWS = 3  # rows that an error names


@dataclass(frozen=True)
class Grid:
    """A grid whose cells are valid recipes."""

    file: ParsedGrid
    base: Recipe  # of every cell, before the cell's changes
    axes: dict[str, tuple[str, ...]]  # axis -> labels, in the order of the file
    cells: tuple[Cell, ...]  # row after row, the seeds of a row next to each other; empty for a TPE search
    baseline: str | None  # label of the row that the others are compared with
    maker: CellMaker
    space: Space | None = None  # of a search
    notices: tuple[str, ...] = ()  # what the author may not expect

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def folder(self) -> Path:
        return Path(self.base.run.root) / "grids" / self.name


def make_grid(file: ParsedGrid, overrides: Sequence[str] = ()) -> Grid:
    """Makes the cells of a grid.

    Raises:
        UserError: with every problem of every cell.
    """
    choose_executor(file)
    maker = CellMaker(file, overrides)
    if file.spec.search is not None:
        return _make_search(maker)
    axes = read_axes(file)
    _check_overrides(maker, axes.combinations)
    cells = _checked_cells(maker, axes.combinations)
    _check_scores(file, [cell.recipe for cell in cells])
    notices = tuple(dict.fromkeys(notice for cell in cells for notice in cell.notices))
    return Grid(file, maker.base_recipe(), axes.labels, cells, axes.baseline, maker, notices=notices)


def _make_search(maker: CellMaker) -> Grid:
    """A search with its trials, if they are drawn in advance. Both ends of each range and all choices are checked."""
    file, search = maker.grid, maker.grid.spec.search
    assert search is not None, file.path
    problems: list[Problem] = []

    def note(code: str, key: Key, found: str, expected: str = "", hint: str = "") -> None:
        problems.append(Problem(code, found, file.place(key), expected, hint))

    for word in ("axes", "zip", ABLATE, "include", "exclude"):
        if getattr(file.spec, word):
            note("conflicting-settings", (word,), "the grid is a search", "the keys in search.keys", f"Remove {word}.")
    if len(file.spec.seeds) > 1:
        note("conflicting-settings", ("seeds",), "a search trains each trial once", "at most one seed")
    for name in ("prune", "monitor"):
        if getattr(search, name) is not None and search.method != "tpe":
            text = f"{search.method} trials do not depend on scores"
            note("ignored-setting", ("search", name), text, "method: tpe", f"Remove {name}.")
    if file.spec.report.baseline is not None:
        note("ignored-setting", ("report", "baseline"), "a search has no baseline", hint="Remove it.")
    keys: Key = ("search", "keys")
    space, found = read_space(search.keys)
    problems += [problem.at(file.place((*keys, *at))) for at, problem in found]
    if problems:
        raise UserError.of(problems)
    extremes = [
        (label_of(key, value, space), [Option({}, (Change(key, value, (*keys, key)),))])
        for key, part in space.items()
        for value in (part.values if isinstance(part, Choices) else (part.low, part.high))
    ]
    _check_overrides(maker, extremes)
    _make_cells(maker, extremes)
    base = maker.base_recipe()
    _check_scores(file, [base])
    cells: tuple[Cell, ...] = ()
    if search.method == "random":
        trials = random_trials(space, search.trials, search.seed)
        cells = _checked_cells(maker, [_combination(space, values) for values in trials])
    names = short_names(space)
    axes = {names[key]: tuple(dict.fromkeys(cell.settings[names[key]] for cell in cells)) for key in space}
    notices = [notice for cell in cells for notice in cell.notices]
    if search.method == "tpe" and search.trials <= RANDOM_TRIALS:
        notices.append(f"the first {RANDOM_TRIALS} trials of tpe are random, and search.trials is {search.trials}")
    return Grid(file, base, axes, cells, None, maker, space, tuple(dict.fromkeys(notices)))


def _combination(space: Space, values: dict[str, Any]) -> Combination:
    """The row of a trial."""
    names = short_names(space)
    labels = {names[key]: space[key].label(value) for key, value in values.items()}
    changes = tuple(Change(key, value, ("search", "keys", key)) for key, value in values.items())
    return ", ".join(label_of(key, value, space) for key, value in values.items()), [Option(labels, changes)]


def trial_cell(grid: Grid, values: dict[str, Any]) -> Cell:
    """The cell of a trial.

    Raises:
        UserError: its values do not fit each other.
    """
    assert grid.space is not None, grid.name
    label, options = _combination(grid.space, values)
    return grid.maker.cells(label, options, grid.file.spec.seeds)[0]


def _changed_keys(combinations: Sequence[Combination]) -> dict[str, Key]:
    """Recipe keys that some cells set, and their places in the grid file."""
    return {change.key: change.at for _, options in combinations for option in options for change in option.changes}


def _check_overrides(maker: CellMaker, combinations: Sequence[Combination]) -> None:
    """Raises for an override on the command line that the cells override in turn."""
    changed = {*_changed_keys(combinations), *([SEED] if maker.grid.spec.seeds else [])}
    for word in maker.overrides:
        key = word.lstrip("~+").partition("=")[0].strip()
        for other in changed:
            if is_within(key, other):
                found = f"the cells set {other}, so this has no effect"
                raise UserError("ignored-setting", found, place=f"override: {word}", hint="Leave it out.")


def _check_values(file: ParsedGrid, combinations: Sequence[Combination]) -> None:
    """Raises for values that others of the same file override in every cell."""
    seeds, problems = file.spec.seeds, []
    for index, seed in enumerate(seeds):
        if seed in seeds[:index]:
            problems.append(Problem("duplicate-name", f"seed {seed} is listed twice", file.place(("seeds", index))))
    changed = {**_changed_keys(combinations), **{key: ("set", key) for key in file.spec.set}}
    if seeds and SEED in changed:
        place = f"{file.line(changed[SEED])}: {SEED}"
        problems.append(Problem("conflicting-settings", "seeds sets it as well", place, hint="Remove one of the two."))
    for key in file.spec.set:
        if key in {*file.spec.axes, *file.spec.zip}:
            place = file.place(("set", key))
            problems.append(Problem("conflicting-settings", "the key is also an axis", place, hint="Remove it."))
    if problems:
        raise UserError.of(problems)


def _checked_cells(maker: CellMaker, combinations: Sequence[Combination]) -> tuple[Cell, ...]:
    """All cells, no two of which compute the same."""
    _check_values(maker.grid, combinations)
    cells = _make_cells(maker, combinations)
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.digest, cell)
        if other is not cell:
            found = f"'{other.title}' and '{cell.title}' compute the same: their difference does not affect results"
            raise UserError("ignored-setting", found, place=short(maker.grid.path), hint="Exclude one of them.")
    return tuple(cells)


def _make_cells(maker: CellMaker, combinations: Sequence[Combination]) -> list[Cell]:
    """The cells. A problem of several rows is reported once, with their labels."""
    rows: dict[Problem, list[str]] = {}
    cells: list[Cell] = []
    for label, options in combinations:
        try:
            cells += maker.cells(label, options, maker.grid.spec.seeds)
        except UserError as error:
            for problem in error.problems:
                rows.setdefault(problem, []).append(label)
    if rows:
        raise UserError.of(_with_rows(problem, labels, len(combinations)) for problem, labels in rows.items())
    return cells


def _with_rows(problem: Problem, labels: Sequence[str], count: int) -> Problem:
    labels = list(dict.fromkeys(labels))
    if len(labels) == count:
        return problem
    more = f" and {len(labels) - MAX_ROWS} more" if len(labels) > MAX_ROWS else ""
    return replace(problem, hint=f"{problem.hint} In {'; '.join(labels[:MAX_ROWS])}{more}".strip())


def _check_scores(file: ParsedGrid, recipes: Sequence[Recipe]) -> None:
    problems = [
        check_score(metric, recipes, file.place(("report", "metrics", index)))
        for index, metric in enumerate(file.spec.report.metrics)
    ]
    if file.spec.search is not None and file.spec.search.monitor is not None:
        problems.append(check_score(file.spec.search.monitor, recipes, file.place(("search", "monitor")), ["val"]))
    if found := [problem for problem in problems if problem is not None]:
        raise UserError.of(found)
