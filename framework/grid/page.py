"""The page of a grid: its table, effects of its axes, curves, costs, and a link to the report of each cell."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter

from framework.grid.effects import Curves, crossed_pairs, read_curves, varied
from framework.grid.plots import cost_figure, curves_figure, interaction_figure, main_effect_figure, row_keys
from framework.grid.results import CellResult, Comparison, GridResult, Row
from framework.grid.weak_models import weak_models
from framework.grid.wording import (
    COSTS,
    arrow,
    axis_names,
    best_rows,
    cost_texts,
    decimals,
    difference_texts,
    footnotes,
    is_significant,
    lacks_of,
    legend,
    memory_text,
    one_line,
    p_text,
    seeds_text,
    setting_headers,
    settings_of,
    spread_text,
)
from framework.pages.plot import key_mark
from framework.pages.render import render
from framework.runtime.live import time_text

STYLED = {"done", "failed", "running"}  # statuses with a colour of their own; the others wait


@dataclass(frozen=True)
class PageData:
    """All that a page shows, so that it can be drawn without the runs."""

    made: date
    result: GridResult
    curves: Curves

    @classmethod
    def collect(cls, result: GridResult, made: date | None = None) -> PageData:
        """Reads the curves from the runs. `made` is the date on the page; None is today."""
        return cls(made or date.today(), result, read_curves(result))

    @classmethod
    def from_json(cls, text: str) -> PageData:
        return TypeAdapter(cls).validate_json(text)

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, default=str) + "\n"


def draw_page(data: PageData, path: Path | None = None) -> str:
    """Returns the page as HTML. The same data, files and path give the same text.

    Args:
        path: where the page will be; from there its cells link to their `run/report.html` if that file exists. None:
            no links, for a page that is handed on without the runs.
    """
    result = data.result
    notes, names = footnotes(result), [one_line(metric) for metric in result.metrics]
    axes, pairs = varied(result), crossed_pairs(result)
    columns = [*(axis_names(result) or ["setting"]), "seed", *result.metrics, "time", "memory [GiB]"]
    words = set(setting_headers(result))
    return render(
        "grid.html.j2",
        title=one_line(result.name),
        about=_about(result, data.made),
        warnings=weak_models(result),
        notices=[one_line(notice) for notice in result.notices],
        cards=[_card(result, metric) for metric in result.metrics],
        settings=setting_headers(result),
        metrics=[{"name": name, "arrow": arrow(result, m)} for name, m in zip(names, result.metrics)],
        compares=result.baseline is not None,
        costs=COSTS,
        rows=[_row(result, i, notes[i].mark if i in notes else None) for i in range(len(result.rows))],
        legend=legend(result),
        footnotes=[{"mark": n.mark, "text": f"{one_line(n.row.label)}: {n.text}"} for n in notes.values()],
        blocks=[
            {
                "metric": name,
                "effects": [main_effect_figure(result, axis, metric) for axis in axes],
                "interactions": [interaction_figure(result, *pair, metric) for pair in pairs],
                "costs": [cost_figure(result, metric, cost) for cost in ("seconds", "parameters")],
            }
            for name, metric in zip(names, result.metrics)
        ],
        row_keys=row_keys(result),
        curves=curves_figure(result, data.curves),
        cell_columns=[
            ("status", "words"),
            *((one_line(name), "words" if one_line(name) in words else None) for name in columns),
            *((name, "words") for name in ("report", "cell", "error")),
        ],
        cells=[_cell(result, row, cell, path) for row in result.rows for cell in row.cells],
    )


def _about(result: GridResult, made: date) -> list[str]:
    cells = [cell for row in result.rows for cell in row.cells]
    statuses = ", ".join(f"{count} {one_line(status)}" for status, count in Counter(c.status for c in cells).items())
    about = [made.isoformat(), f"{len(result.rows)} row{'s' * (len(result.rows) != 1)}"]
    about.append(f"{len(cells)} cell{'s' * (len(cells) != 1)}" + (f": {statuses}" if cells else ""))
    return about + ([f"compared over {result.exams} exams"] if result.exams is not None else [])


def _card(result: GridResult, metric: str) -> tuple[str, str, list[str]]:
    """The best row of a metric, for the macro `card`."""
    best, places, lacking = sorted(best_rows(result, metric)), decimals(result, metric), footnotes(result)
    name = f"{one_line(metric)} {arrow(result, metric)}, best mean"
    if not best:
        return name, "-", ["no cell is done"]
    row = result.rows[best[0]]
    also = f" and {len(best) - 1} more" if len(best) > 1 else ""
    versus = row.versus.get(metric)
    if versus is not None:
        beside = f"{versus.difference:+.{places}f} to the baseline, {p_text(versus.p_corrected)}"
    else:
        beside = "the baseline" if row.label == result.baseline else ""
    beside += f" ({seeds_text(row)})" if best[0] in lacking else ""
    return name, spread_text(row.values[metric], places), [one_line(row.label) + also, beside]


def _row(result: GridResult, index: int, note: str | None) -> dict[str, Any]:
    row = result.rows[index]
    costs = [spread.mean if spread else None for spread in (row.seconds, row.memory_gib)]
    return {
        "is_baseline": row.label == result.baseline,
        "mark": key_mark(index, line=False),
        "settings": settings_of(result, row),
        "seeds": seeds_text(row),
        "done": len(row.cells) - len(row.missing),
        "note": note,
        "scores": [_score(result, index, metric) for metric in result.metrics],
        "costs": list(zip(cost_texts(row), [*costs, row.parameters])),
    }


def _score(result: GridResult, index: int, metric: str) -> dict[str, Any]:
    row, places = result.rows[index], decimals(result, metric)
    spread, versus = row.values.get(metric), row.versus.get(metric)
    mean, _, deviation = spread_text(spread, places).partition(" ± ")
    score = {
        "mean": mean,
        "deviation": deviation,
        "value": spread.mean if spread else None,
        "is_best": index in best_rows(result, metric),
    }
    if versus is None:
        return {**score, "versus": None}
    difference, low, high = difference_texts(versus, places)
    p = p_text(versus.p_corrected).removeprefix("p").removeprefix("=")
    return score | {
        "versus": {
            "value": versus.difference,
            "difference": difference,
            "low": low,
            "high": high,
            "is_significant": is_significant(versus),
            "p": p + " *" * is_significant(versus),
            "p_value": versus.p_corrected,
            "bar": _bar(result, metric, versus),
        }
    }


def _bar(result: GridResult, metric: str, versus: Comparison) -> dict[str, str] | None:
    """The interval as a bar beside zero [percent of its width], on the same scale in all rows."""
    if not all(map(math.isfinite, (versus.low, versus.high, versus.difference))):
        return None
    others = [other for row in result.rows if (other := row.versus.get(metric)) is not None]
    ends = [0.0, *(end for other in others for end in (other.low, other.high) if math.isfinite(end))]
    start, scale = min(ends), 100 / ((max(ends) - min(ends)) or 1.0)
    places = {"zero": 0.0, "low": versus.low, "middle": versus.difference}
    bar = {name: f"{(value - start) * scale:.1f}" for name, value in places.items()}
    return {**bar, "width": f"{(versus.high - versus.low) * scale:.1f}"}


def _cell(result: GridResult, row: Row, cell: CellResult, page: Path | None) -> dict[str, Any]:
    scores = [(cell.scores.get(metric), decimals(result, metric)) for metric in result.metrics]
    lacks = "; ".join(lacks_of(cell, result.metrics)) if cell.status == "done" else one_line(cell.error or "")
    return {
        "status": one_line(cell.status),
        "status_style": cell.status if cell.status in STYLED else "waits",
        "settings": settings_of(result, row),
        "numbers": [
            (str(cell.seed), cell.seed),
            *(("-" if value is None else f"{value:.{places}f}", value) for value, places in scores),
            (time_text(cell.seconds), cell.seconds),
            (memory_text(cell.memory_gib), cell.memory_gib),
        ],
        "link": _link(page, cell.run) if page is not None else None,
        "digest": one_line(cell.digest),
        "error": lacks,
    }


def _link(page: Path, run: Path) -> str | None:
    report = run / "report.html"
    if not report.is_file():
        return None
    return quote(Path(os.path.relpath(report.resolve(), page.resolve().parent)).as_posix())
