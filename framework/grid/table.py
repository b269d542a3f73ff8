"""The table of a grid for a terminal, as CSV, Markdown and LaTeX.

Written here, since tabulate does not escape `|` in Markdown and escapes bold and math in LaTeX, pandas is 84 MB, and
neither has footnotes or rows of two lines.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from framework.grid.results import Comparison, GridResult, Row, Spread
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
    legend,
    mean_text,
    one_line,
    p_text,
    seeds_text,
    setting_headers,
    settings_of,
    spread_text,
)

# CommonMark and Python-Markdown show these as the characters; the latter has no backslash escape for < | $ ~.
MARKDOWN = {sign: f"\\{sign}" for sign in "\\`*_{}[]"} | {sign: f"&#{ord(sign)};" for sign in "&<>|$~"}
# Braces around [ and *, which would be an argument after \\, and around `, which would form a ligature.
LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}",
    "`": "{`}", "±": r"$\pm$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$",
    "→": r"$\rightarrow$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "Δ": r"$\Delta$", "α": r"$\alpha$",
    "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$", "μ": r"$\mu$", "σ": r"$\sigma$", "τ": r"$\tau$",
    "–": "--", "—": "---", "…": r"\ldots{}", "“": "``", "”": "''", "‘": "`", "’": "'",
} | {sign: f"\\{sign}" for sign in "{}$&#_%"}  # fmt: skip
NO_FONT = "% pdflatex has no font for some characters: use xelatex or lualatex, with a package such as ctex.\n"


def header_and_rows(result: GridResult) -> tuple[list[str], list[list[str]]]:
    """The table for a terminal; `wording.notes_below` belongs below it."""
    header = [*setting_headers(result), "seeds"]
    for metric in result.metrics:
        header.append(f"{metric} {arrow(result, metric)}")
        header += [f"Δ {metric}"] if result.baseline is not None else []
    rows = []
    for index, row in enumerate(result.rows):
        line = _row_start(result, index, str, " [{}]")
        for metric in result.metrics:
            places = decimals(result, metric)
            line.append(spread_text(row.values.get(metric), places))
            line += [_versus(result, row, metric)] if result.baseline is not None else []
        rows.append([*line, *cost_texts(row)])
    return [*header, *COSTS], rows


def as_csv(result: GridResult) -> str:
    """One line a row, numbers at full precision, nothing where there is no number. `p_holm` is p, corrected."""
    header = ["row", *axis_names(result), "baseline", "seeds_done", "seeds", "missing"]
    for metric in result.metrics:
        header += [f"{metric} {word}" for word in ("mean", "deviation", "seeds")]
        header += [f"{metric} {word}" for word in ("difference", "low", "high", "p", "p_holm")]
    header += ["seconds", "seconds deviation", "memory_gib", "memory_gib deviation", "parameters"]
    notes, lines = footnotes(result), []
    for index, row in enumerate(result.rows):
        line: list[Any] = [row.label, *(row.settings.get(axis) for axis in axis_names(result))]
        line += ["yes" if row.label == result.baseline else "no", len(row.cells) - len(row.missing), len(row.cells)]
        line.append(notes[index].text if index in notes else None)
        for metric in result.metrics:
            spread, versus = row.values.get(metric), row.versus.get(metric)
            line += [None, None, 0] if spread is None else [spread.mean, spread.deviation, spread.count]
            line += [None] * 5 if versus is None else _numbers(versus)
        lines.append([*line, *_pair(row.seconds), *_pair(row.memory_gib), row.parameters])
    return _csv(header, lines)


def cells_csv(result: GridResult) -> str:
    """One line per cell, with any status."""
    axes = axis_names(result)
    header = ["row", *axes, "seed", "digest", "status", *result.metrics]
    header += ["seconds", "memory_gib", "parameters", "run", "error"]
    lines: list[list[Any]] = [
        [row.label, *(row.settings.get(axis) for axis in axes), cell.seed, cell.digest, cell.status]
        + [cell.scores.get(metric) for metric in result.metrics]
        + [cell.seconds, cell.memory_gib, cell.parameters, cell.run, cell.error]
        for row in result.rows
        for cell in row.cells
    ]
    return _csv(header, lines)


def as_markdown(result: GridResult) -> str:
    """A table and its notes, with the best mean of a metric in bold."""
    header = [*map(markdown, setting_headers(result)), "seeds"]
    for metric in result.metrics:
        header.append(f"{markdown(metric)} {arrow(result, metric)}")
        header += [f"Δ {markdown(metric)}"] if result.baseline is not None else []
    header += COSTS
    left = len(setting_headers(result)) + 1
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    notes, lines = footnotes(result), [header, rule]
    for index, row in enumerate(result.rows):
        line = _row_start(result, index, markdown, r" \[{}\]")
        for metric in result.metrics:
            text = spread_text(row.values.get(metric), decimals(result, metric))
            mean, pm, deviation = text.partition(" ± ")
            line.append(f"**{mean}**{pm}{deviation}" if index in best_rows(result, metric) else text)
            if result.baseline is not None:
                line.append(_versus(result, row, metric).replace("*", r"\*").replace("<", "&lt;"))
        lines.append([*line, *cost_texts(row)])
    below = [markdown(text) for text in [*legend(result), *result.notices]]
    below += [rf"\[{n.mark}\] {markdown(n.row.label)}: {markdown(n.text)}" for n in notes.values()]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    above = "".join(f"**Warning:** {markdown(text)}\n\n" for text in weak_models(result))
    return above + table + "\n\n" + "\n".join(f"- {text}" for text in below) + "\n"


def as_latex(result: GridResult) -> str:
    r"""A `table` and its notes, with the best mean of a metric in bold; needs only `\usepackage{booktabs}`.

    To save width a row has two lines: the scores, and below them the difference to the baseline with its interval and
    mark. p values are in the other formats.
    """
    headers = setting_headers(result)
    top = [*[""] * len(headers), "", *(latex(f"{m} {arrow(result, m)}") for m in result.metrics), "time", "memory"]
    units = [*map(latex, headers), "seeds", *[""] * len(result.metrics), "", "{[}GiB{]}", "{[}M{]}"]
    notes, lines = footnotes(result), []
    for index, row in enumerate(result.rows):
        line = _row_start(result, index, latex, r"\textsuperscript{{{}}}")
        for metric in result.metrics:
            places, best = decimals(result, metric), index in best_rows(result, metric)
            line.append(_latex_spread(row.values.get(metric), places, best))
        lines += [r"\addlinespace"] if index else []
        lines.append(_latex_line([*line, *cost_texts(row)]))
        versus = [_latex_versus(result, row, metric) for metric in result.metrics]
        if any(versus):
            lines.append(_latex_line([*[""] * len(headers), r"\scriptsize $\Delta$", *versus, "", "", ""]))
    warnings = [rf"\textbf{{Warning:}} {latex(text)}" for text in weak_models(result)]
    below = [*warnings, *(latex(text) for text in [*legend(result), *result.notices])]
    below += [rf"\textsuperscript{{{n.mark}}} {latex(n.row.label)}: {latex(n.text)}" for n in notes.values()]
    parts = [
        r"\begin{table}", r"\centering", r"\setlength{\belowcaptionskip}{6pt}",
        rf"\caption{{{latex(result.name)}}}", r"\footnotesize", r"\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{@{{}}{'l' * (len(headers) + 1)}{'r' * (len(result.metrics) + len(COSTS))}@{{}}}}",
        r"\toprule", _latex_line([*top, "parameters"]), _latex_line(units), r"\midrule",
        *lines, r"\bottomrule", r"\end{tabular}", "",
        r"\smallskip", r"\begin{minipage}{\linewidth}", r"\footnotesize", r"\raggedright",
        " \\\\\n".join(below), r"\end{minipage}", r"\end{table}",
    ]  # fmt: skip
    text = "\n".join(parts) + "\n"
    return (NO_FONT if any(sign > "ſ" for sign in text) else "") + text


def _row_start(result: GridResult, index: int, escape: Callable[[str], str], mark: str) -> list[str]:
    """The settings and the seeds of a row, with marks of the baseline and of a footnote."""
    row, note = result.rows[index], footnotes(result).get(index)
    first, *others = map(escape, settings_of(result, row))
    first += " (baseline)" if row.label == result.baseline else ""
    return [first, *others, escape(seeds_text(row)) + (mark.format(note.mark) if note else "")]


def markdown(text: str) -> str:
    return "".join(MARKDOWN.get(sign, sign) for sign in one_line(text))


def latex(text: str) -> str:
    text = "".join(LATEX.get(sign, sign) for sign in one_line(text).replace("--", "-\0-").replace("--", "-\0-"))
    return text.replace("''", "'{}'").replace("\0", "{}")


def _versus(result: GridResult, row: Row, metric: str) -> str:
    """`+0.012 [+0.003, +0.021] p=0.012 *`; empty for the baseline, `-` for a row that is not compared."""
    versus = row.versus.get(metric)
    if versus is None:
        return "" if row.label == result.baseline else "-"
    difference, low, high = difference_texts(versus, decimals(result, metric))
    mark = " *" if is_significant(versus) else ""
    return f"{difference} [{low}, {high}] {p_text(versus.p_corrected)}{mark}"


def _latex_spread(spread: Spread | None, places: int, best: bool) -> str:
    if spread is None:
        return "-{}"
    mean = mean_text(spread, places)
    mean = rf"\mathbf{{{mean}}}" if best else mean
    return f"${mean}$" if spread.deviation is None else rf"${mean} \pm {spread.deviation:.{places}f}$"


def _latex_versus(result: GridResult, row: Row, metric: str) -> str:
    versus = row.versus.get(metric)
    if versus is None:
        return "" if row.label == result.baseline or result.baseline is None else "-{}"
    difference, low, high = difference_texts(versus, decimals(result, metric))
    mark = "^{*}" if is_significant(versus) else ""
    return rf"\scriptsize ${difference}{mark}$ $[{low}, {high}]$"


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _numbers(versus: Comparison) -> list[float]:
    return [versus.difference, versus.low, versus.high, versus.p, versus.p_corrected]


def _pair(spread: Spread | None) -> list[float | None]:
    return [None, None] if spread is None else [spread.mean, spread.deviation]


def _csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer: Callable[[Sequence[Any]], Any] = csv.writer(text, lineterminator="\n").writerow
    writer(header)
    for line in lines:
        writer(line)
    return text.getvalue()
