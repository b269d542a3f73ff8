"""One offline HTML page of a grid: its table, effects of its axes, curves, costs, and a link to each cell's report."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from datetime import date
from pathlib import Path
from urllib.parse import quote

from framework.grid.effects import crossed_pairs, varied
from framework.grid.plots import cost_figure, curves_figure, interaction_figure, main_effect_figure, row_keys
from framework.grid.results import CellResult, Comparison, GridResult, Row
from framework.grid.wording import (
    COSTS,
    Note,
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
    time_text,
)
from framework.pages.style import SCRIPT, STYLE
from framework.pages.svg import escape, key
from framework.runtime.files import atomic_write

# Beside the escaping: a browser runs this one script and loads nothing, whatever a label holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'"
WITH_A_STYLE = {"done", "failed", "running"}  # of others: it waits for somebody


def write_page(result: GridResult, path: Path, made: date | None = None, *, linked: bool = True) -> None:
    """Writes the page to `path`; links of cells lead from there to `run/report.html` where that is a file.

    The same result, files and date give the same bytes.

    Args:
        made: the date that stands on it; None: today.
        linked: False for a page that is handed on without the runs.
    """
    link = {cell.run: _link(path, cell.run) if linked else None for row in result.rows for cell in row.cells}
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY.format(digest))}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(one_line(result.name))}</title>",
        f"<style>{STYLE}</style>\n</head>\n<body>",
        *_head(result, made or date.today()),
        "<h2>Results</h2>",
        *_results(result),
        *_figures(result),
        "<h2>Learning curves</h2>",
        f'<div class="scope">{curves_figure(result)}</div>',
        '<p class="who">Thin: each cell. Thick: the mean of a row, as far as all its seeds have come. '
        "○ where the curve of a cell that is not done ends.</p>",
        "<h2>Cells</h2>",
        *_cells(result, link),
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n",
    ]
    atomic_write(path, "\n".join(parts))


def _link(page: Path, run: Path) -> str | None:
    report = run / "report.html"
    if not report.is_file():
        return None
    return quote(Path(os.path.relpath(report.resolve(), page.resolve().parent)).as_posix())


def _head(result: GridResult, made: date) -> list[str]:
    """Title, what it is made of, notices, and the best row of each metric."""
    cells = [cell for row in result.rows for cell in row.cells]
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell.status] = counts.get(cell.status, 0) + 1
    statuses = ", ".join(f"{count} {one_line(status)}" for status, count in counts.items())
    about = [made.isoformat(), f"{len(result.rows)} row{'s' * (len(result.rows) != 1)}"]
    about.append(f"{len(cells)} cell{'s' * (len(cells) != 1)}" + (f": {statuses}" if cells else ""))
    about += [f"compared over {result.exams} exams"] if result.exams is not None else []
    parts = [f"<h1>{escape(one_line(result.name))}</h1>", f'<p class="who">{escape(" · ".join(about))}</p>']
    if result.notices:
        said = "".join(f"<li>{escape(one_line(notice))}</li>" for notice in result.notices)
        parts.append(f'<aside class="notices" aria-label="Notices"><ul>{said}</ul></aside>')
    cards = "".join(_card(result, metric) for metric in result.metrics)
    return [*parts, f'<div class="cards">{cards}</div>'] if cards else parts


def _card(result: GridResult, metric: str) -> str:
    best, places, lacking = sorted(best_rows(result, metric)), decimals(result, metric), footnotes(result)
    name = f'<span class="who">{escape(one_line(metric))} {arrow(result, metric)}, best mean</span>'
    if not best:
        return f'<div class="card">{name}<b>-</b><span class="who">no cell is done</span></div>'
    row = result.rows[best[0]]
    also = f" and {len(best) - 1} more" if len(best) > 1 else ""
    versus = row.versus.get(metric)
    if versus is not None:
        beside = f"{versus.difference:+.{places}f} to the baseline, {p_text(versus.p_corrected)}"
    else:
        beside = "the baseline" if row.label == result.baseline else ""
    beside += f" ({seeds_text(row)})" if best[0] in lacking else ""
    return (
        f'<div class="card">{name}<b>{spread_text(row.values[metric], places)}</b>'
        f'<span>{escape(one_line(row.label) + also)}</span><span class="who">{escape(beside)}</span></div>'
    )


def _results(result: GridResult) -> list[str]:
    headers, compares = setting_headers(result), result.baseline is not None
    wide = 3 if compares else 1
    group = "".join(
        f'<th class="group" colspan="{wide}" scope="colgroup">'
        f"<span>{escape(one_line(metric))} {arrow(result, metric)}</span></th>"
        for metric in result.metrics
    )
    groups = f'<tr class="groups"><td colspan="{len(headers) + 1}"></td>{group}<td colspan="{len(COSTS)}"></td></tr>'
    columns = [_column(name, "words") for name in headers] + [_column("seeds", "words")]
    for _ in result.metrics:
        columns += [_column("mean")] + ([_column("Δ baseline"), _column("p (Holm)")] if compares else [])
    columns += [_column(name) for name in COSTS]
    notes = footnotes(result)
    rows = [_row(result, index, notes.get(index)) for index in range(len(result.rows))]
    said = "".join(f"<p>{escape(text)}</p>" for text in legend(result))
    marked = "".join(
        f'<li id="note-{note.mark}">{escape(one_line(note.row.label))}: {escape(note.text)}</li>'
        for note in notes.values()
    )
    return [
        '<div class="scroll" tabindex="0" role="region" aria-label="Results">',
        f'<table class="results sortable"><thead>{groups}<tr>{"".join(columns)}</tr></thead>',
        f"<tbody>{''.join(rows)}</tbody></table></div>",
        f'<div class="who">{said}</div>',
        f'<ol class="notes who">{marked}</ol>' if marked else "",
    ]


def _row(result: GridResult, index: int, note: Note | None) -> str:
    row = result.rows[index]
    settings = settings_of(result, row)
    tag = '<span class="tag">baseline</span>' if row.label == result.baseline else ""
    cells = [
        f'<th scope="row" class="words" data-value="{escape(settings[0])}">'
        f"{key(index, line=False)}{escape(settings[0])}{tag}</th>",
        *(_td(escape(label), label, "words") for label in settings[1:]),
    ]
    mark = f'<sup><a href="#note-{note.mark}">{note.mark}</a></sup>' if note else ""
    cells.append(_td(escape(seeds_text(row)) + mark, len(row.cells) - len(row.missing), "words"))
    for metric in result.metrics:
        cells += _metric_cells(result, index, metric)
    costs = [spread.mean if spread else None for spread in (row.seconds, row.memory_gib)]
    cells += [_td(text, value) for text, value in zip(cost_texts(row), [*costs, row.parameters])]
    kind = ' class="baseline"' if tag else ""
    return f"<tr{kind}>{''.join(cells)}</tr>\n"


def _metric_cells(result: GridResult, index: int, metric: str) -> list[str]:
    row, places = result.rows[index], decimals(result, metric)
    spread, versus = row.values.get(metric), row.versus.get(metric)
    mean, pm, deviation = spread_text(spread, places).partition(" ± ")
    best = ' class="best"' if index in best_rows(result, metric) else ""
    text = f"<span{best}>{mean}</span>" + (f'<span class="pm">{pm}{deviation}</span>' if pm else "")
    cells = [_td(text, spread.mean if spread else None)]
    if result.baseline is None:
        return cells
    if versus is None:
        none = "" if row.label == result.baseline else "-"
        return [*cells, _td(none, None), _td(none, None)]
    difference, low, high = difference_texts(versus, places)
    text = (
        f'<span class="under">{difference}{_interval(result, metric, versus)}</span> '
        f'<span class="pm">[{low}, {high}]</span>'
    )
    mark = " *" if is_significant(versus) else ""
    p = escape(p_text(versus.p_corrected).removeprefix("p").removeprefix("=")) + mark
    return [*cells, _td(text, versus.difference), _td(p, versus.p_corrected)]


def _interval(result: GridResult, metric: str, versus: Comparison) -> str:
    """The interval as a small bar beside zero, on the same scale for all rows."""
    if not all(map(math.isfinite, (versus.low, versus.high, versus.difference))):
        return ""
    others = [other for row in result.rows if (other := row.versus.get(metric)) is not None]
    ends = [0.0, *(end for other in others for end in (other.low, other.high) if math.isfinite(end))]
    low, high = min(ends), max(ends)
    scale = 66 / ((high - low) or 1.0)
    x = [f"{2 + (value - low) * scale:.1f}" for value in (0.0, versus.low, versus.high, versus.difference)]
    sure = " sure" if is_significant(versus) else ""
    return (
        '<svg class="interval" viewBox="0 0 70 14" width="70" height="14" aria-hidden="true">'
        f'<path class="axis" d="M{x[0]},0V14"></path><path class="bar{sure}" d="M{x[1]},7H{x[2]}"></path>'
        f'<circle class="point{sure}" cx="{x[3]}" cy="7" r="3"></circle></svg>'
    )


def _figures(result: GridResult) -> list[str]:
    """Effects and costs, a block a metric; the script shows the one that is chosen."""
    options = "".join(f'<option value="{i}">{escape(one_line(m))}</option>' for i, m in enumerate(result.metrics))
    parts = ["<h2>Effects and costs</h2>"]
    if len(result.metrics) > 1:
        parts.append(f'<label class="choice" hidden>Metric <select id="metric">{options}</select></label>')
    axes, pairs = varied(result), crossed_pairs(result)
    for i, metric in enumerate(result.metrics):
        parts.append(f'<section data-metric="{i}" aria-label="{escape(one_line(metric))}">')
        if axes:
            parts += [f"<h3>{escape(one_line(metric))} by axis</h3>", '<div class="plots">']
            parts += [main_effect_figure(result, axis, metric) for axis in axes]
            parts += [f'<div class="scope">{interaction_figure(result, *pair, metric)}</div>' for pair in pairs]
            parts += [
                "</div>",
                '<p class="who">Large marks: the mean over all settings of the other axes and over seeds; '
                "small dots: single cells; ○ hollow: the mean lacks cells, named beneath.</p>",
            ]
        parts += ['<h3>Score against cost</h3><div class="scope">', '<div class="plots">']
        parts += [cost_figure(result, metric, "seconds"), cost_figure(result, metric, "parameters")]
        parts.append(f"</div>{row_keys(result)}</div></section>")
    return parts


def _cells(result: GridResult, link: dict[Path, str | None]) -> list[str]:
    names = ["status", *(axis_names(result) or ["setting"]), "seed", *result.metrics, "time", "memory [GiB]"]
    words = {"status", *setting_headers(result)}
    columns = [_column(one_line(name), "words" if one_line(name) in words else "") for name in names]
    columns += [_column(name, "words") for name in ("report", "cell", "error")]
    rows = [_cell(result, row, cell, link[cell.run]) for row in result.rows for cell in row.cells]
    return [
        '<div class="scroll" tabindex="0" role="region" aria-label="Cells">',
        f'<table class="sortable"><thead><tr>{"".join(columns)}</tr></thead>',
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    ]


def _cell(result: GridResult, row: Row, cell: CellResult, link: str | None) -> str:
    status = one_line(cell.status)
    known = cell.status if cell.status in WITH_A_STYLE else "waits"
    scores = [(cell.scores.get(metric), decimals(result, metric)) for metric in result.metrics]
    error = "; ".join(lacks_of(cell, result.metrics)) if cell.status == "done" else one_line(cell.error or "")
    parts = [
        _td(f'<span class="status {known}">{escape(status)}</span>', status, "words"),
        *(_td(escape(label), label, "words") for label in settings_of(result, row)),
        _td(str(cell.seed), cell.seed),
        *(_td("-" if value is None else f"{value:.{places}f}", value) for value, places in scores),
        _td(time_text(cell.seconds), cell.seconds),
        _td(memory_text(cell.memory_gib), cell.memory_gib),
        _td(f'<a href="{escape(link)}">report</a>' if link else "-", "report" if link else None, "words"),
        _td(f"<code>{escape(one_line(cell.digest))}</code>", cell.digest, "words"),
        _td(escape(error), error or None, "text"),
    ]
    return f"<tr>{''.join(parts)}</tr>\n"


def _column(name: str, kind: str = "") -> str:
    """A header that sorts: a button, so that the keyboard reaches it."""
    beside = f' class="{kind}"' if kind else ""
    return f'<th scope="col" aria-sort="none"{beside}><button type="button">{escape(name)}</button></th>'


def _td(inside: str, value: float | str | None, kind: str = "") -> str:
    """A cell of HTML. `value`: what it is sorted by; None, and what is no number, come last."""
    beside = f' class="{kind}"' if kind else ""
    sorts = value is not None and (isinstance(value, str) or math.isfinite(value))
    data = f' data-value="{escape(str(value))}"' if sorts else ""
    return f"<td{beside}{data}>{inside}</td>"
