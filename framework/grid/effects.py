"""The data behind the figures of a grid: means of settings and what they lack, the Pareto front, learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from framework.grid.results import CellResult, GridResult, Row
from framework.grid.wording import axis_names, lacks_of, one_line
from framework.pages.records import read_records
from framework.runtime.errors import UserError

MAX_POINTS = 240  # points of a curve; in a longer one, neighbours are averaged
MAX_LABELS = 24  # of an axis in a plot


@dataclass(frozen=True)
class Effect:
    """A metric at one label of an axis, over all settings of the other axes."""

    label: str
    mean: float | None  # of the means of the rows: a row without all its seeds has the same weight; None: no score
    cells: tuple[tuple[CellResult, float], ...]  # the single scores
    lacks: tuple[str, ...]  # cells and settings that the mean should include and does not


@dataclass(frozen=True)
class Curve:
    """Values of one cell during training."""

    row: int  # index in the result
    cell: int  # index in the row
    points: tuple[tuple[float, float], ...]  # (step, value)


@dataclass(frozen=True)
class Curves:
    """The learning curves of a grid, all of one metric."""

    name: str
    lines: tuple[Curve, ...]
    notes: tuple[str, ...]  # cells without a curve, and why


def labels_of(result: GridResult, axis: str) -> list[str]:
    """Labels of an axis in the order of the grid file; labels that only rows have come last."""
    own = [row.settings[axis] for row in result.rows if axis in row.settings]
    return list(dict.fromkeys([*result.axes.get(axis, ()), *own]))


def varied(result: GridResult) -> list[str]:
    """Axes of the grid file that have an effect to plot: with 2 to `MAX_LABELS` labels."""
    return [axis for axis in result.axes if 1 < len(labels_of(result, axis)) <= MAX_LABELS]


def main_effects(result: GridResult, axis: str, metric: str) -> list[Effect]:
    return [_effect(result, {axis: label}, metric) for label in labels_of(result, axis)]


def interactions(result: GridResult, axis: str, other: str, metric: str) -> dict[str, list[Effect]]:
    """The effects of `axis` at each label of `other`."""
    return {
        line: [_effect(result, {axis: label, other: line}, metric) for label in labels_of(result, axis)]
        for line in labels_of(result, other)
    }


def crossed_pairs(result: GridResult) -> list[tuple[str, str]]:
    """Pairs of axes of which the first varies at two or more labels of the second."""
    pairs = []
    for axis, other in combinations(varied(result), 2):
        seen: dict[str, set[str]] = {}
        for row in result.rows:
            seen.setdefault(_label(row, other), set()).add(_label(row, axis))
        if sum(len(labels) > 1 for labels in seen.values()) > 1:
            pairs.append((axis, other))
    return pairs


def _effect(result: GridResult, fixed: dict[str, str], metric: str) -> Effect:
    rows = [row for row in result.rows if all(_label(row, axis) == label for axis, label in fixed.items())]
    others = [axis for axis in axis_names(result) if axis not in fixed]
    means, cells, lacks = [], [], []
    for row in rows:
        spread = row.values.get(metric)
        scored = [(cell, cell.scores[metric]) for cell in row.cells if metric in cell.scores]
        finite = [(cell, value) for cell, value in scored if math.isfinite(value)]
        cells += finite
        missing = [text for cell in row.cells for text in lacks_of(cell, (metric,), with_error=False)]
        if len(finite) < len(scored):
            missing.append("a score is not finite")
        elif spread is None and not missing:
            missing.append("no score")
        if missing:
            lacks.append(f"{one_line(row.label)}: {'; '.join(missing)}")
        if spread is not None and math.isfinite(spread.mean):
            means.append(spread.mean)
    at = ", ".join(f"{one_line(axis)}={one_line(label)}" for axis, label in fixed.items())
    there = {_settings(row, others) for row in rows}
    absent = dict.fromkeys(settings for row in result.rows if (settings := _settings(row, others)) not in there)
    if not rows:
        lacks.append(f"{at}: not in the grid")
    elif absent:
        missing_settings = "; ".join(
            ", ".join(f"{one_line(a)}={one_line(s)}" for a, s in zip(others, row)) for row in absent
        )
        lacks.append(f"{at}: not in the grid with {missing_settings}")
    label = next(iter(fixed.values()))
    return Effect(label, fmean(means) if means else None, tuple(cells), tuple(lacks))


def _label(row: Row, axis: str) -> str:
    return row.settings.get(axis, "-")


def _settings(row: Row, axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(_label(row, axis) for axis in axes)


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[int]:
    """Indices of the points (cost, score) that no other point dominates, in the order of their cost."""
    sign = 1 if higher_is_better else -1
    worth = [(cost, -sign * score) for cost, score in points]  # lower is better in both
    front = [
        index
        for index, (cost, loss) in enumerate(worth)
        if not any(c <= cost and s <= loss and (c, s) != (cost, loss) for c, s in worth)
    ]
    return sorted(front, key=lambda index: worth[index])


def read_curves(result: GridResult) -> Curves:
    """Reads the curves of all cells: of the first metric on the validation split, or, without one, of the training
    loss.
    """
    wanted = [f"val/{result.metrics[0].split('/', 1)[-1]}"] if result.metrics else []
    broken: dict[str, str] = {}
    for name in [*wanted, "train/loss"]:
        curves, without = [], []
        for index, row in enumerate(result.rows):
            for number, cell in enumerate(row.cells):
                place = f"{one_line(row.label)}, seed {cell.seed}"
                try:
                    path = cell.run / "metrics.jsonl"
                    points = [(float(r.step), r.value) for r in read_records(path, name)] if path.is_file() else []
                except UserError as error:
                    broken.setdefault(place, f"{place}: its curve is left out: {one_line(str(error))}")
                    continue
                if points:
                    curves.append(Curve(index, number, tuple(points)))
                else:
                    without.append(f"{place} ({one_line(cell.status)})")
        if curves:
            break
    notes = list(broken.values())
    if curves and without:
        notes.append(f"Without {one_line(name)}: {'; '.join(without)}")
    size = math.ceil(max((len(curve.points) for curve in curves), default=1) / MAX_POINTS)
    if size > 1:
        notes.append(f"Each point is the mean of {size} consecutive values.")
        curves = [replace(curve, points=_thinned(curve.points, size)) for curve in curves]
    return Curves(name, tuple(curves), tuple(notes))


def _thinned(points: Sequence[tuple[float, float]], size: int) -> tuple[tuple[float, float], ...]:
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((stretch[-1][0], fmean(value for _, value in stretch)) for stretch in stretches)


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """The mean over the seeds of a row, at the steps that all of them have."""
    by_step = [dict(curve.points) for curve in curves]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    return [(step, fmean(values[step] for values in by_step)) for step in steps]
