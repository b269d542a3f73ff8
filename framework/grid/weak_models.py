"""Warns of models whose differences mean nothing: below the baselines, at the floor of a score, or collapsed."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import NamedTuple

from framework.grid.results import GridResult, Row
from framework.grid.wording import decimals, mean_text, one_line
from framework.scoring.table import SHORT


class _Margin(NamedTuple):
    """How a row stands to the strongest baseline of a score, over the seeds that are done."""

    row: Row
    baseline: str
    score: float  # of the baseline
    difference: float  # row minus baseline; positive is better


def weak_models(result: GridResult) -> list[str]:
    """Warnings to read before any difference and its p value; empty if models are above the baselines."""
    return [*_below(result), *_at_floor(result), *_collapsed(result)]


def _below(result: GridResult) -> Iterator[str]:
    hopeless: list[str] = []
    of_row: dict[str, list[str]] = {}  # metrics
    for metric in result.metrics:
        margins = [margin for row in result.rows if (margin := _margin(result, row, metric)) is not None]
        below = [margin for margin in margins if margin.difference <= 0]
        name, places = one_line(metric), decimals(result, metric)
        if below and len(below) == len(margins):
            best = max(margins, key=lambda margin: margin.difference)
            spread = best.row.values[metric]
            assert spread is not None, "a row with a margin has scores"
            hopeless.append(
                f"{name} (best {mean_text(spread, places)}, {one_line(best.row.label)}; "
                f"{SHORT[best.baseline]} {best.score:.{places}f})"
            )
        else:
            for margin in below:
                of_row.setdefault(one_line(margin.row.label), []).append(name)
    if hopeless:
        yield (
            f"No model is above the strongest baseline in {', '.join(hopeless)}. Differences between such models, and "
            "their p values, do not show which setting is better. Train longer or on more exams first."
        )
    for label, names in of_row.items():
        yield f"{label} is not above the strongest baseline in {', '.join(names)}."


def _margin(result: GridResult, row: Row, metric: str) -> _Margin | None:
    """None if no cell of the row has both scores."""
    sign = 1 if result.higher_is_better[metric] else -1
    found = []
    for cell in row.cells:
        baselines = cell.baselines.get(metric)
        if metric in cell.scores and baselines:
            strongest = max(baselines, key=lambda name: sign * baselines[name])
            found.append((strongest, baselines[strongest], sign * (cell.scores[metric] - baselines[strongest])))
    if not found:
        return None
    return _Margin(row, found[0][0], fmean(each[1] for each in found), fmean(each[2] for each in found))


def _at_floor(result: GridResult) -> Iterator[str]:
    for metric in result.metrics:
        values = [spread.mean for row in result.rows if (spread := row.values.get(metric)) is not None]
        if values and not any(values) and result.higher_is_better[metric]:
            yield f"{one_line(metric)} is 0 for every model."


def _collapsed(result: GridResult) -> Iterator[str]:
    done = [cell for row in result.rows for cell in row.cells if cell.status == "done"]
    if collapsed := sum(cell.collapsed for cell in done):
        yield f"Collapsed models, which write one report for nearly every exam: {collapsed} of {len(done)}."
