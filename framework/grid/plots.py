"""The figures of a grid's page, each a piece of HTML: effects of the axes, learning curves, score against cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from framework.grid.effects import (
    Effect,
    interactions,
    main_effects,
    mean_curve,
    pareto_front,
    read_curves,
)
from framework.grid.results import CellResult, GridResult, Row
from framework.grid.wording import arrow, decimals, footnotes, one_line, seeds_text, spread_text
from framework.pages.svg import (
    COLOURS,
    WIDE,
    Panel,
    escape,
    key,
    marker,
    panel_over,
    span,
)

TOLD = 8  # notes of a figure that are open to see
LOG_FROM = 8  # a cost that differs by more than this factor is on a logarithmic axis


def main_effect_figure(result: GridResult, axis: str, metric: str) -> str:
    """The mean at each label of an axis over everything else, and the single cells behind it."""
    effects = main_effects(result, axis, metric)
    places = decimals(result, metric)
    labels = [one_line(effect.label) for effect in effects]
    panel = panel_over(labels, one_line(axis), *_range(result, metric))
    panel.vertical_axis(f"{one_line(metric)} {arrow(result, metric)}")
    _baseline(panel, result, metric)
    for index, effect in enumerate(effects):
        count = len(effect.cells)
        for i, (cell, value) in enumerate(effect.cells):
            x = panel.x(index + 0.26 * ((i + 0.5) / count - 0.5) * min(1, count / 6))
            title = f"<title>{escape(f'{_settings(cell)}, seed {cell.seed}: {value:.{places}f}')}</title>"
            place = f'cx="{x:.1f}" cy="{panel.y(value):.1f}"'
            panel.marks.append(f'<circle class="dot" {place} r="2.6">{title}</circle>')
    panel.marks.append('<g class="c0">')
    _series(panel, effects, 0, 0.0, places)
    panel.marks.append("</g>")
    described = f"Mean {one_line(metric)} by {one_line(axis)}: {_told(effects, places)}"
    return _figure(one_line(axis), panel.drawn(described), "", _lacks(effects), wide=panel.width == WIDE)


def interaction_figure(result: GridResult, axis: str, other: str, metric: str) -> str:
    """The means of one axis, with a line for each label of another."""
    lines = interactions(result, axis, other, metric)
    places = decimals(result, metric)
    labels = [one_line(effect.label) for effect in next(iter(lines.values()))]
    means = [e.mean for effects in lines.values() for e in effects if e.mean is not None]
    panel = panel_over(labels, one_line(axis), *span(means or [0.0]))
    panel.vertical_axis(f"{one_line(metric)} {arrow(result, metric)}")
    keys, told = [], []
    for series, (label, effects) in enumerate(lines.items()):
        beside = 0.05 * (series - (len(lines) - 1) / 2)  # equal means do not hide one another
        panel.marks.append(f'<g class="c{series % COLOURS}" data-key="{series}">')
        _series(panel, effects, series, max(-0.3, min(0.3, beside)), places)
        panel.marks.append("</g>")
        keys.append((series, one_line(label), False))
        told.append(f"{one_line(other)} {one_line(label)}: {_told(effects, places)}")
    described = f"Mean {one_line(metric)} by {one_line(axis)} at each {one_line(other)}. {'. '.join(told)}"
    lacks = _lacks([effect for effects in lines.values() for effect in effects])
    legend = _keys(keys, one_line(other))
    title = f"{one_line(axis)} × {one_line(other)}"
    return _figure(title, panel.drawn(described), legend, lacks, wide=panel.width == WIDE)


def cost_figure(result: GridResult, metric: str, cost: str) -> str:
    """A metric against `seconds` or `parameters`, a point a row; those that no other beats in both are joined."""
    costs = [(i, row, _cost(row, cost)) for i, row in enumerate(result.rows)]
    shown = [
        (i, row, spent, spread.mean)
        for i, row, spent in costs
        if (spread := row.values.get(metric)) is not None and spent is not None and math.isfinite(spread.mean)
    ]
    name = "training time" if cost == "seconds" else "parameters"
    absent = [one_line(row.label) for i, row, _ in costs if i not in [index for index, *_ in shown]]
    notes = [f"Without a point: {', '.join(absent)}"] if absent else []
    if not shown:
        return _figure(name, '<p class="who">Nothing to draw yet.</p>', "", notes)
    unit, size = _unit([spent for _, _, spent, _ in shown], cost)
    dots = [
        (i, spent / size, cell.scores[metric])
        for i, row in enumerate(result.rows)
        for cell in row.cells
        if (spent := getattr(cell, cost)) and math.isfinite(cell.scores.get(metric, math.nan))
    ]
    spans = [spent / size for _, _, spent, _ in shown] + [spent for _, spent, _ in dots]
    log = min(spans) > 0 and max(spans) / min(spans) > LOG_FROM
    left, right = (min(spans) / 1.3, max(spans) * 1.3) if log else span(spans)
    panel = Panel(*_range(result, metric), left, right, log_x=log)
    panel.vertical_axis(f"{one_line(metric)} {arrow(result, metric)}")
    panel.horizontal_axis(f"{name} [{unit}]{', logarithmic' if log else ''}")
    front = pareto_front([(spent, score) for _, _, spent, score in shown], result.higher_is_better[metric])
    _front(panel, [(shown[at][2] / size, shown[at][3]) for at in front])
    for i, spent, score in dots:
        panel.marks.append(
            f'<circle class="dot own c{i % COLOURS}" data-key="{i}" cx="{panel.x(spent):.1f}" '
            f'cy="{panel.y(score):.1f}" r="2.2"></circle>'
        )
    lacking, places = footnotes(result), decimals(result, metric)
    for at, (i, row, spent, score) in enumerate(shown):
        x, y = panel.x(spent / size), panel.y(score)
        title = f"{one_line(row.label)}: {spread_text(row.values[metric], places)} at {spent / size:.3g} {unit}"
        ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="9"></circle>' if at in front else ""
        mark = marker(x, y, i, 5, hollow=i in lacking, title=title)
        panel.marks.append(f'<g class="c{i % COLOURS}" data-key="{i}">{ring}{mark}</g>')
    best = ", ".join(one_line(shown[at][1].label) for at in front)
    hollow = [f"○ {one_line(row.label)}: {seeds_text(row)}" for i, row, *_ in shown if i in lacking]
    caption = f'<p class="who">Pareto front (ringed): {escape(best)}</p>'
    described = f"{one_line(metric)} against {name}. Pareto front: {best}"
    return _figure(f"{one_line(metric)} against {name}", panel.drawn(described), caption, [*hollow, *notes])


def curves_figure(result: GridResult) -> str:
    """The curves of all cells: thin lines, a colour a row, and the mean of a row as far as all its seeds have come."""
    name, curves, notes = read_curves(result)
    if not curves:
        return _figure("", '<p class="who">No cell has recorded a curve yet.</p>', "", notes)
    steps = [step for curve in curves for step, _ in curve.points]
    low, high = span([value for curve in curves for _, value in curve.points])
    panel = Panel(low, high, min(0.0, *steps), max([*steps, 1.0]), width=WIDE, height=400, right=20)
    panel.vertical_axis(one_line(name))
    panel.horizontal_axis("step")
    for index, row in enumerate(result.rows):
        own = [curve for curve in curves if curve.row == index]
        if not own:
            continue
        panel.marks.append(f'<g class="c{index % COLOURS}" data-key="{index}">')
        for curve in own:
            _curve(panel, curve.points, curve.cell, index)
        mean = mean_curve(own) if len(own) == len(row.cells) > 1 else []
        if mean:
            panel.line(mean, "line", index)
            for at, (step, value) in enumerate(mean):
                if at == len(mean) - 1 or at % math.ceil(len(mean) / 5) == 0:
                    panel.marks.append(marker(panel.x(step), panel.y(value), index, 4))
        panel.marks.append("</g>")
    described = f"{one_line(name)} by step, {len(curves)} cells"
    return _figure(one_line(name), panel.drawn(described), row_keys(result), notes, wide=True)


def row_keys(result: GridResult) -> str:
    """The legend of figures that show rows."""
    lacking = footnotes(result)
    return _keys([(index, one_line(row.label), index in lacking) for index, row in enumerate(result.rows)], "")


def _keys(keys: Iterable[tuple[int, str, bool]], title: str) -> str:
    """A legend: (series, label, whether it lacks something)."""
    items = [
        f'<li tabindex="0" data-show="{series}">{key(series)}{escape(label)}{" ○" if lacks else ""}</li>'
        for series, label, lacks in keys
    ]
    head = f'<li class="who">{escape(title)}</li>' if title else ""
    return f'<ul class="keys">{head}{"".join(items)}</ul>'


def _figure(title: str, picture: str, legend: str, lacks: Sequence[str], wide: bool = False) -> str:
    head = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    kind = "plot wide" if wide else "plot"
    return f'<figure class="{kind}">{head}<div class="picture">{picture}</div>{legend}{_notes(lacks)}</figure>'


def _notes(lacks: Sequence[str]) -> str:
    if not lacks:
        return ""
    said = "".join(f"<li>{escape(text)}</li>" for text in lacks[:TOLD])
    more = "".join(f"<li>{escape(text)}</li>" for text in lacks[TOLD:])
    rest = f"<details><summary>{len(lacks) - TOLD} more</summary><ul>{more}</ul></details>" if more else ""
    return f'<div class="lacks"><ul>{said}</ul>{rest}</div>'


def _lacks(effects: Sequence[Effect]) -> list[str]:
    """What hollow marks mean, and what had no mark at all."""
    hollow = dict.fromkeys(text for effect in effects if effect.mean is not None for text in effect.lacks)
    absent = dict.fromkeys(text for effect in effects if effect.mean is None for text in effect.lacks)
    return [f"○ {text}" for text in hollow] + [f"no mark: {text}" for text in absent if text not in hollow]


def _series(panel: Panel, effects: Sequence[Effect], series: int, beside: float, places: int) -> None:
    """Marks of the means, joined where neighbours both have one."""
    for here, after in pairwise(range(len(effects))):
        first, second = effects[here].mean, effects[after].mean
        if first is not None and second is not None:
            panel.line([(here + beside, first), (after + beside, second)], "line", series)
    for i, effect in enumerate(effects):
        if effect.mean is not None:
            title = f"{one_line(effect.label)}: {effect.mean:.{places}f}{', ' if effect.lacks else ''}"
            title += "; ".join(effect.lacks)
            x, y = panel.x(i + beside), panel.y(effect.mean)
            panel.marks.append(marker(x, y, series, 5, hollow=bool(effect.lacks), title=title))


def _baseline(panel: Panel, result: GridResult, metric: str) -> None:
    """A level to read the effects against."""
    row = next((row for row in result.rows if row.label == result.baseline), None)
    spread = row.values.get(metric) if row is not None else None
    if spread is not None and math.isfinite(spread.mean):
        y, end = panel.y(spread.mean), panel.width - panel.right
        panel.marks.append(f'<path class="zero" d="M{panel.left:.1f},{y:.1f}H{end:.1f}"></path>')
        panel.text(end, y - 4, "baseline", "tick", "end")


def _curve(panel: Panel, points: Sequence[tuple[float, float]], cell: CellResult, series: int) -> None:
    title = f"<title>{escape(f'{_settings(cell)}, seed {cell.seed}, {one_line(cell.status)}')}</title>"
    panel.marks.append(f"<g>{title}")
    if len(points) > 1:
        panel.line(points, "thin", series)
    if len(points) == 1 or cell.status != "done":  # where a curve ends before its time
        panel.marks.append(marker(panel.x(points[-1][0]), panel.y(points[-1][1]), series, 3.2, hollow=True))
    panel.marks.append("</g>")


def _front(panel: Panel, points: Sequence[tuple[float, float]]) -> None:
    if len(points) > 1:
        path = "".join(
            f"M{panel.x(x):.1f},{panel.y(y):.1f}" if i == 0 else f"H{panel.x(x):.1f}V{panel.y(y):.1f}"
            for i, (x, y) in enumerate(points)
        )
        panel.marks.append(f'<path class="front" d="{path}"></path>')


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
    """A unit, and how much of what was counted it is."""
    if cost == "parameters":
        return "millions", 1e6
    longest = max(values)
    return ("s", 1.0) if longest < 120 else ("min", 60.0) if longest < 7200 else ("h", 3600.0)


def _settings(cell: CellResult) -> str:
    return ", ".join(f"{one_line(axis)}={one_line(label)}" for axis, label in cell.settings.items()) or "cell"


def _told(effects: Sequence[Effect], places: int) -> str:
    return ", ".join(
        f"{one_line(e.label)} {'none' if e.mean is None else f'{e.mean:.{places}f}'}"
        + (" (incomplete)" if e.mean is not None and e.lacks else "")
        for e in effects
    )
