"""Texts of the table and the page of a grid: formatted numbers, missing seeds, legend and footnotes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from framework.grid.results import CellResult, Comparison, GridResult, Row, Spread
from framework.runtime.live import time_text

SIGNIFICANT = 0.05  # a corrected p below it is marked
COSTS = ("time", "memory [GiB]", "parameters [M]")  # columns of `cost_texts`


@dataclass(frozen=True)
class Note:
    """A footnote of one row."""

    mark: str  # "1"
    row: Row
    text: str  # "seed 2 failed: out of memory; seed 3 queued"


def one_line(text: str) -> str:
    """Replaces line breaks and unprintable characters, which labels and errors from files may contain."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def axis_names(result: GridResult) -> list[str]:
    """Axes in the order of the file, then settings that only some rows have."""
    return list(dict.fromkeys([*result.axes, *(axis for row in result.rows for axis in row.settings)]))


def settings_of(result: GridResult, row: Row) -> list[str]:
    """The values of a row under `setting_headers`."""
    axes = axis_names(result)
    return [one_line(row.settings.get(axis, "-")) for axis in axes] if axes else [one_line(row.label)]


def setting_headers(result: GridResult) -> list[str]:
    return [one_line(axis) for axis in axis_names(result)] or ["setting"]


def arrow(result: GridResult, metric: str) -> str:
    return "↑" if result.higher_is_better[metric] else "↓"


def decimals(result: GridResult, metric: str) -> int:
    """Decimal places of a metric: three significant digits of its largest mean."""
    means = [abs(spread.mean) for row in result.rows if (spread := row.values.get(metric)) is not None]
    largest = max((mean for mean in means if math.isfinite(mean)), default=0.0)
    if largest == 0:
        return 3
    return min(8, max(3 if largest < 100 else 1, 2 - math.floor(math.log10(largest))))


def mean_text(spread: Spread, places: int) -> str:
    return f"{spread.mean:.{places}f}"


def spread_text(spread: Spread | None, places: int) -> str:
    """`0.312 ± 0.004`; only the mean for one seed."""
    if spread is None:
        return "-"
    beside = "" if spread.deviation is None else f" ± {spread.deviation:.{places}f}"
    return mean_text(spread, places) + beside


def difference_texts(versus: Comparison, places: int) -> tuple[str, str, str]:
    """A difference and the ends of its interval with signs: `+0.012`, `+0.003`, `+0.021`."""
    return f"{versus.difference:+.{places}f}", f"{versus.low:+.{places}f}", f"{versus.high:+.{places}f}"


def p_text(p: float) -> str:
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"


def is_significant(comparison: Comparison | None) -> bool:
    return comparison is not None and comparison.p_corrected < SIGNIFICANT


def best_rows(result: GridResult, metric: str) -> set[int]:
    """Indices of the rows with the best mean; several if their means round to the same text."""
    places = decimals(result, metric)
    means = {
        index: spread.mean
        for index, row in enumerate(result.rows)
        if (spread := row.values.get(metric)) is not None and math.isfinite(spread.mean)
    }
    if not means:
        return set()
    best = (max if result.higher_is_better[metric] else min)(means.values())
    return {index for index, mean in means.items() if f"{mean:.{places}f}" == f"{best:.{places}f}"}


def memory_text(gib: float | None) -> str:
    return "-" if gib is None else f"{gib:.2f}"


def parameters_text(count: int | None) -> str:
    """In millions."""
    if count is None:
        return "-"
    return f"{count / 1e6:.2f}" if count >= 1e5 else f"{count / 1e6:.4f}"


def cost_texts(row: Row) -> list[str]:
    """The values of a row under `COSTS`."""
    seconds, memory = row.seconds, row.memory_gib
    return [
        time_text(seconds.mean if seconds else None),
        memory_text(memory.mean if memory else None),
        parameters_text(row.parameters),
    ]


def seeds_text(row: Row) -> str:
    """`3/3`, or `1/3, 1 failed, 1 queued`."""
    done = len(row.cells) - len(row.missing)
    by_status: dict[str, int] = {}
    for cell in row.missing:
        by_status[one_line(cell.status)] = by_status.get(one_line(cell.status), 0) + 1
    return ", ".join([f"{done}/{len(row.cells)}", *(f"{count} {status}" for status, count in by_status.items())])


def footnotes(result: GridResult) -> dict[int, Note]:
    """By index of the row, a note on each row without some scores of a seed."""
    notes: dict[int, Note] = {}
    for index, row in enumerate(result.rows):
        texts = [text for cell in row.cells for text in lacks_of(cell, result.metrics)]
        if not row.cells:
            texts = ["it has no cell"]
        if texts:
            notes[index] = Note(str(len(notes) + 1), row, "; ".join(texts))
    return notes


def lacks_of(cell: CellResult, metrics: tuple[str, ...], *, with_error: bool = True) -> Iterator[str]:
    """The reasons why a cell has no scores."""
    if cell.status != "done":
        error = f": {one_line(cell.error)}" if cell.error and with_error else ""
        yield f"seed {cell.seed} {one_line(cell.status)}{error}"
        return
    for metric in metrics:
        if metric not in cell.scores:
            yield f"seed {cell.seed} is done, but has no {one_line(metric)}"


def legend(result: GridResult) -> list[str]:
    """Explains the numbers and marks of the table, one sentence each."""
    texts = ["Mean ± standard deviation (n - 1) over the seeds that are done; ↑ higher is better, ↓ lower is better."]
    if any(spread.deviation is None for row in result.rows for spread in row.values.values() if spread is not None):
        texts.append("A mean without ± is of one seed.")
    if result.baseline is not None:
        over = "" if result.exams is None else f" over the same {result.exams} exams"
        texts.append(
            f"Δ: difference to the baseline ({one_line(result.baseline)}) with its 95 % interval{over}, not corrected; "
            f"p two-sided, corrected by Holm over all comparisons of a metric; * p < {SIGNIFICANT}. "
            "Exams are resampled, seeds are not: p does not cover other seeds."
        )
    return texts


def notes_below(result: GridResult) -> list[str]:
    """Legend, notices and footnotes for a plain-text table."""
    marked = [f"[{note.mark}] {one_line(note.row.label)}: {note.text}" for note in footnotes(result).values()]
    return [*legend(result), *(one_line(notice) for notice in result.notices), *marked]
