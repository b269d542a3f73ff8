"""The figures of a grid's page: effects of the axes, learning curves, score against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from framework.grid.effects import Curves, Effect, interactions, main_effects, mean_curve, pareto_front
from framework.grid.results import CellResult, GridResult, Row
from framework.grid.wording import arrow, decimals, footnotes, one_line, seeds_text, spread_text
from framework.pages.plot import Figure, Key, Plot, span

LOG_FROM = 8  # a cost that differs by more than this factor has a logarithmic axis
MANY = 8  # more labels than this are set closer together
CURVE_MARKS = 5  # of a mean curve, which distinguish its series without colour


def main_effect_figure(result: GridResult, axis: str, metric: str) -> Figure:
    """The mean at each label of an axis over everything else, and the single cells behind it."""
    effects, places = main_effects(result, axis, metric), decimals(result, metric)
    plot = Plot(_name(result, metric), height=_height(len(effects)))
    plot.y_labels([one_line(effect.label) for effect in effects])
    plot.axes.set_xlim(*_range(result, metric))
    baseline = next((row.values.get(metric) for row in result.rows if row.label == result.baseline), None)
    if baseline is not None and math.isfinite(baseline.mean):
        plot.level(baseline.mean, "baseline")
    for index, effect in enumerate(effects):
        count = len(effect.cells)
        for i, (cell, value) in enumerate(effect.cells):
            beside = 0.5 * ((i + 0.5) / count - 0.5) * min(1, count / 6)
            plot.dot(value, index + beside, title=f"{_settings(cell)}, seed {cell.seed}: {value:.{places}f}")
        if effect.mean is not None:
            plot.beside(index, f"{effect.mean:.{places}f}")
    _means(plot, effects, 0, 0.0, places)
    described = f"Mean {one_line(metric)} by {one_line(axis)}: {_described(effects, places)}"
    return Figure(one_line(axis), plot.svg(described), notes=_lacks(effects))


def interaction_figure(result: GridResult, axis: str, other: str, metric: str) -> Figure:
    """The means of one axis, in a series for each label of another; joined by lines if the labels have an order."""
    lines, places = interactions(result, axis, other, metric), decimals(result, metric)
    labels = [one_line(effect.label) for effect in next(iter(lines.values()))]
    means = [e.mean for effects in lines.values() for e in effects if e.mean is not None]
    plot = Plot(_name(result, metric), height=_height(len(labels), len(lines)))
    plot.y_labels(labels)
    plot.axes.set_xlim(*span(means or [0.0]))
    step = min(0.12, 0.7 / len(lines))  # equal means do not hide one another
    ordered = is_ordered(labels)
    for series, effects in enumerate(lines.values()):
        _means(plot, effects, series, step * (series - (len(lines) - 1) / 2), places, joined=ordered)
    described = [f"{one_line(other)} {one_line(label)}: {_described(e, places)}" for label, e in lines.items()]
    return Figure(
        f"{one_line(axis)} × {one_line(other)}",
        plot.svg(f"Mean {one_line(metric)} by {one_line(axis)} at each {one_line(other)}. {'. '.join(described)}"),
        legend=one_line(other),
        keys=[Key(series, one_line(label), ordered) for series, label in enumerate(lines)],
        notes=_lacks([effect for effects in lines.values() for effect in effects]),
    )


def cost_figure(result: GridResult, metric: str, cost: str) -> Figure:
    """A metric against `seconds` or `parameters`, a point for each row; the Pareto front is joined."""
    costs = [(i, row, _cost(row, cost)) for i, row in enumerate(result.rows)]
    shown = [
        (i, row, spent, spread.mean)
        for i, row, spent in costs
        if (spread := row.values.get(metric)) is not None and spent is not None and math.isfinite(spread.mean)
    ]
    name = "training time" if cost == "seconds" else "parameters"
    title = f"{one_line(metric)} against {name}"
    absent = [one_line(row.label) for i, row, _ in costs if i not in [index for index, *_ in shown]]
    notes = [f"Without a point: {', '.join(absent)}"] if absent else []
    if not shown:
        return Figure(name, nothing="Nothing to draw yet.", notes=notes)
    unit, size = _unit([spent for _, _, spent, _ in shown], cost)
    dots = [
        (i, spent / size, cell.scores[metric])
        for i, row in enumerate(result.rows)
        for cell in row.cells
        if (spent := getattr(cell, cost)) and math.isfinite(cell.scores.get(metric, math.nan))
    ]
    spans = [spent / size for _, _, spent, _ in shown] + [spent for _, spent, _ in dots]
    log = min(spans) > 0 and max(spans) / min(spans) > LOG_FROM
    plot = Plot(f"{name} [{unit}]{', logarithmic' if log else ''}", _name(result, metric))
    if log:
        plot.log_x()
    plot.axes.set_xlim(*((min(spans) / 1.3, max(spans) * 1.3) if log else span(spans)))
    plot.axes.set_ylim(*_range(result, metric))
    front = pareto_front([(spent, score) for _, _, spent, score in shown], result.higher_is_better[metric])
    plot.front([(shown[at][2] / size, shown[at][3]) for at in front], [shown[at][0] for at in front])
    for i, spent, score in dots:
        plot.dot(spent, score, i)
    lacking, places = footnotes(result), decimals(result, metric)
    for i, row, spent, score in shown:
        text = f"{one_line(row.label)}: {spread_text(row.values[metric], places)} at {spent / size:.3g} {unit}"
        plot.mark(spent / size, score, i, hollow=i in lacking, title=text)
    best = ", ".join(one_line(shown[at][1].label) for at in front)
    hollow = [f"○ {one_line(row.label)}: {seeds_text(row)}" for i, row, *_ in shown if i in lacking]
    return Figure(
        name,
        plot.svg(f"{title}. Pareto front: {best}"),
        caption=f"Pareto front (ringed): {best}",
        notes=[*hollow, *notes],
    )


def curves_figure(result: GridResult, curves: Curves) -> Figure:
    """The curves of all cells, thin, in the colour of their row, and the mean of each row as far as all seeds go."""
    name = one_line(curves.name)
    if not curves.lines:
        return Figure("", nothing="No cell has recorded a curve yet.", notes=curves.notes)
    steps = [step for curve in curves.lines for step, _ in curve.points]
    plot = Plot("step", width=960, height=380)
    plot.axes.set_ylim(*span([value for curve in curves.lines for _, value in curve.points]))
    plot.axes.set_xlim(min(0.0, *steps), max([*steps, 1.0]))
    for index, row in enumerate(result.rows):
        own = [curve for curve in curves.lines if curve.row == index]
        for curve in own:
            cell, last = row.cells[curve.cell], curve.points[-1]
            title = f"{_settings(cell)}, seed {cell.seed}, {one_line(cell.status)}"
            plot.line(curve.points, index, "thin", title)
            if len(curve.points) == 1 or cell.status != "done":  # it ends before its time
                plot.mark(*last, index, 6, hollow=True, title=title)
        if mean := mean_curve(own) if len(own) == len(row.cells) > 1 else []:
            plot.line(mean, index)
            for step, value in mean[:: -math.ceil(len(mean) / CURVE_MARKS)]:
                plot.mark(step, value, index, 8)
    described = plot.svg(f"{name} by step, {len(curves.lines)} cells")
    caption = (
        "Thin: each cell. Thick: the mean of a row, up to the step that all its seeds have reached. "
        "○ where the curve of a cell that is not done ends."
    )
    return Figure(name, described, caption=caption, keys=row_keys(result), notes=curves.notes, wide=True)


def is_ordered(labels: Sequence[str]) -> bool:
    """Whether labels have an order, so that a line between them means something: numbers that rise or fall."""
    try:
        values = [float(label) for label in labels]
    except ValueError:
        return False
    return values in (sorted(values), sorted(values, reverse=True))


def row_keys(result: GridResult) -> list[Key]:
    """The legend of figures that show rows."""
    lacking = footnotes(result)
    labels = [one_line(row.label) + " ○" * (i in lacking) for i, row in enumerate(result.rows)]
    return [Key(series, label) for series, label in enumerate(labels)]


def _height(labels: int, lines: int = 1) -> float:
    return 80 + labels * max(36 if labels <= MANY else 24, 12 * lines)


def _name(result: GridResult, metric: str) -> str:
    return f"{one_line(metric)} {arrow(result, metric)}"


def _lacks(effects: Sequence[Effect]) -> list[str]:
    """What hollow marks lack, and why other means have no mark."""
    hollow = dict.fromkeys(text for effect in effects if effect.mean is not None for text in effect.lacks)
    absent = dict.fromkeys(text for effect in effects if effect.mean is None for text in effect.lacks)
    return [f"○ {text}" for text in hollow] + [f"no mark: {text}" for text in absent if text not in hollow]


def _means(
    plot: Plot, effects: Sequence[Effect], series: int, beside: float, places: int, *, joined: bool = False
) -> None:
    """Marks of means; `joined`: neighbours that both have one are joined."""
    for here, (first, second) in enumerate(pairwise(effects)):
        if joined and first.mean is not None and second.mean is not None:
            plot.line([(first.mean, here + beside), (second.mean, here + 1 + beside)], series)
    for i, effect in enumerate(effects):
        if effect.mean is not None:
            text = f"{one_line(effect.label)}: {effect.mean:.{places}f}"
            title = ", ".join([text, "; ".join(effect.lacks)] if effect.lacks else [text])
            plot.mark(effect.mean, i + beside, series, hollow=bool(effect.lacks), title=title)


def _range(result: GridResult, metric: str) -> tuple[float, float]:
    """One for all figures of single cells, so that they can be compared."""
    values = [cell.scores[metric] for row in result.rows for cell in row.cells if metric in cell.scores]
    values += [spread.mean for row in result.rows if (spread := row.values.get(metric)) is not None]
    return span([value for value in values if math.isfinite(value)] or [0.0])


def _cost(row: Row, cost: str) -> float | None:
    if cost == "parameters":
        return row.parameters
    return row.seconds.mean if row.seconds is not None else None


def _unit(values: Sequence[float], cost: str) -> tuple[str, float]:
    """A unit, and its size in what is counted."""
    if cost == "parameters":
        return "millions", 1e6
    longest = max(values)
    return ("s", 1.0) if longest < 120 else ("min", 60.0) if longest < 7200 else ("h", 3600.0)


def _settings(cell: CellResult) -> str:
    return ", ".join(f"{one_line(axis)}={one_line(label)}" for axis, label in cell.settings.items()) or "cell"


def _described(effects: Sequence[Effect], places: int) -> str:
    return ", ".join(
        f"{one_line(e.label)} {'none' if e.mean is None else f'{e.mean:.{places}f}'}"
        + (" (incomplete)" if e.mean is not None and e.lacks else "")
        for e in effects
    )
