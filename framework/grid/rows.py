"""Rows of a result table: means over seeds, and differences to the baseline on resampled exams.

Shapes: E exams, R resamples of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from framework.grid.rescoring import NotComparableError, WrittenReports
from framework.grid.results import CellResult, Comparison, Row
from framework.grid.statistics import RESAMPLES, Difference, bootstrap_differences, holm, spread
from framework.registry import did_you_mean
from framework.runtime.errors import UserError

SLOW_RESAMPLES = 500  # for a metric without statistics per exam, which takes milliseconds per resample


class Group(NamedTuple):
    """The cells of one setting."""

    label: str
    settings: Mapping[str, str]
    cells: Sequence[CellResult]

    @property
    def done(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.status == "done"]


def grid_rows(
    groups: Sequence[tuple[str, Mapping[str, str], Sequence[CellResult]]],
    metrics: Sequence[str],
    *,
    baseline: str | None,
    compare: Literal["paired_bootstrap", "none"] = "paired_bootstrap",
    seed: int = 0,
) -> tuple[tuple[Row, ...], int | None, tuple[str, ...]]:
    """Returns the rows in the given order, the number of exams in the comparisons, and notices.

    A value is the mean over the seeds that are done, and a difference is the difference of two such means. Exams are
    resampled, seeds are not: p value and interval describe the choice of exams, the deviation describes the choice of
    seeds. Holm's correction is over all compared rows, separately for each metric.

    Args:
        groups: for each row, its label, its settings (axis -> label), and its cells, one per seed.
        metrics: such as test/bleu_4, val/cider, test/findings_f1/margin, test/bleu_4_char.
        baseline: label of a row; None disables comparisons.

    Raises:
        UserError: all cells are done, and none has one of the scores.
    """
    rows = [Group(*group) for group in groups]
    assert baseline is None or baseline in [group.label for group in rows], baseline
    _check_metrics(rows, metrics)
    notices = [notice for group in rows for notice in _missing_notices(group, metrics)]
    versus: dict[tuple[str, str], Comparison] = {}
    exams: dict[str, int] = {}
    if compare == "paired_bootstrap" and baseline is not None:
        scores: dict[str, list[str]] = {}
        for metric in dict.fromkeys(metrics):
            split, _, score = metric.partition("/")
            scores.setdefault(split, []).append(score)
        for split, wanted in scores.items():
            found, over, reasons = _compare(rows, baseline, split, wanted, seed)
            versus |= {(label, f"{split}/{score}"): comparison for (label, score), comparison in found.items()}
            notices += reasons
            if found:
                exams[split] = over
    first = next(iter(exams), "")
    for split, over in exams.items():
        if over != exams[first]:
            notices.append(f"{split}/...: compared over {over} exams, {first}/... over {exams[first]}")
    return tuple(_row(group, metrics, versus) for group in rows), exams.get(first), tuple(notices)


def _check_metrics(rows: Sequence[Group], metrics: Sequence[str]) -> None:
    known = {name: None for group in rows for cell in group.done for name in cell.scores}
    if not known or any(cell.status != "done" for group in rows for cell in group.cells):
        return  # a cell that is not done yet may produce the score
    for metric in metrics:
        if metric not in known:
            whole = [name for name in known if name.count("/") == 1]
            hint = f"{did_you_mean(metric, known)} Known: {', '.join(whole)}, and their parts".strip()
            raise UserError("unknown-name", f"no cell has the score '{metric}'", place="report.metrics", hint=hint)


def _missing_notices(group: Group, metrics: Sequence[str]) -> list[str]:
    done, notices = group.done, []
    missing = [cell for cell in group.cells if cell.status != "done"]
    if missing:
        seeds = "; ".join(
            f"seed {cell.seed} {cell.status}" + (f" ({cell.error})" if cell.error else "") for cell in missing
        )
        over = f"its values are over {len(done)} of {len(group.cells)} seeds" if done else "it has no values"
        notices.append(f"{group.label}: {over}: {seeds}")
    for metric in metrics:
        if without := [cell for cell in done if metric not in cell.scores]:
            seeds = ", ".join(str(cell.seed) for cell in without)
            notices.append(f"{group.label}: {metric} is not among the scores of seed {seeds}")
    sizes = sorted({cell.parameters for cell in done if cell.parameters is not None})
    if len(sizes) > 1:
        notices.append(f"{group.label}: {sizes[0]} to {sizes[-1]} parameters, by seed; the table shows the most")
    return notices


def _row(group: Group, metrics: Sequence[str], versus: Mapping[tuple[str, str], Comparison]) -> Row:
    done = group.done
    return Row(
        label=group.label,
        settings=dict(group.settings),
        cells=tuple(group.cells),
        values={name: spread([cell.scores[name] for cell in done if name in cell.scores]) for name in metrics},
        versus={name: versus.get((group.label, name)) for name in metrics},
        seconds=spread([cell.seconds for cell in done if cell.seconds is not None]),
        memory_gib=spread([cell.memory_gib for cell in done if cell.memory_gib is not None]),
        parameters=max((cell.parameters for cell in done if cell.parameters is not None), default=None),
    )


def _compare(
    rows: Sequence[Group], baseline: str, split: str, scores: Sequence[str], seed: int
) -> tuple[dict[tuple[str, str], Comparison], int, list[str]]:
    """Returns the comparisons on a split by label and score, the number of exams, and notices on what is not compared.

    Args:
        scores: without the split.
    """
    base = next(group for group in rows if group.label == baseline)
    if not base.done:
        return {}, 0, [f"nothing is compared on {split}: no seed of the baseline, {baseline}, is done"]
    try:
        first = WrittenReports(base.done[0], split)
        reports = {baseline: _read_reports(base, first)}
        exams = len(first.references)
        if exams < 2:
            raise NotComparableError(f"{exams} exam, and resampling needs two")
    except NotComparableError as error:
        return {}, 0, [f"nothing is compared on {split}, because of the baseline, {baseline}: {error}"]
    notices: list[str] = []
    for group in rows:
        if group is not base and group.done:
            try:
                reports[group.label] = _read_reports(group, first)
            except NotComparableError as error:
                notices.append(f"{group.label}: not compared on {split}: {error}")
    compared = [key for score in scores for key in _comparable(reports, baseline, score, notices)]
    found = _differences_of(reports, baseline, compared, seed, notices)
    corrected: dict[tuple[str, str], float] = {}
    for score in scores:
        chosen = [key for key in found if key[1] == score]
        corrected |= zip(chosen, holm([found[key].p for key in chosen]))
    return (
        {key: Comparison(one.value, one.low, one.high, one.p, corrected[key]) for key, one in found.items()},
        exams if found else 0,
        notices,
    )


def _comparable(
    reports: Mapping[str, Sequence[WrittenReports]], baseline: str, score: str, notices: list[str]
) -> list[tuple[str, str]]:
    """(label, score) of the rows whose score can be compared; adds a notice for each other row."""
    first, compared = reports[baseline][0], []
    for label, written in reports.items():
        try:
            for one in written:
                one.check(score, first)
        except NotComparableError as error:
            notices.append(f"{label}: {first.split}/{score} is not compared: {error}")
            if label == baseline:
                return []  # the baseline comes first, and no other row is compared without it
        else:
            compared += [(label, score)] if label != baseline else []
    return compared


def _differences_of(
    reports: Mapping[str, Sequence[WrittenReports]],
    baseline: str,
    compared: Sequence[tuple[str, str]],
    seed: int,
    notices: list[str],
) -> dict[tuple[str, str], Difference]:
    """The difference of each (label, score) that is finite on every resample; adds a notice for each other one."""
    first = reports[baseline][0]
    split, exams = first.split, len(first.references)
    fast = [key for key in compared if first.has_sums(key[1])]
    found = dict(zip(fast, _bootstrap(reports, baseline, fast, exams, seed, RESAMPLES))) if fast else {}
    slow = list(dict.fromkeys(score for _, score in compared if not first.has_sums(score)))
    for score in slow:  # one at a time: a user's metric may fail on a resample
        keys = [key for key in compared if key[1] == score]
        try:
            found |= zip(keys, _bootstrap(reports, baseline, keys, exams, seed, SLOW_RESAMPLES))
        except NotComparableError as error:
            notices.append(f"{split}/{score} is not compared: {error}")
    if slow:
        notices.append(
            f"{', '.join(f'{split}/{score}' for score in slow)}: on {SLOW_RESAMPLES} resamples of the exams, not "
            f"{RESAMPLES}, so that no p is below {2 / (1 + SLOW_RESAMPLES):.3f}: its metric has no "
            "per_exam_stats and compute"
        )
    for label, score in [key for key, one in found.items() if not math.isfinite(one.low + one.high)]:
        del found[label, score]
        notices.append(f"{label}: {split}/{score} is not compared: it is not finite on some resamples")
    return found


def _read_reports(group: Group, like: WrittenReports) -> list[WrittenReports]:
    return [like if cell is like.cell else WrittenReports(cell, like.split, like) for cell in group.done]


def _bootstrap(
    reports: Mapping[str, Sequence[WrittenReports]],
    baseline: str,
    chosen: Sequence[tuple[str, str]],
    exams: int,
    seed: int,
    bootstrap_samples: int,
) -> list[Difference]:
    """The difference of each (label, score): its mean over seeds minus the baseline's."""
    wanted = {label: [score for name, score in chosen if name == label] for label, _ in chosen}
    wanted[baseline] = list(dict.fromkeys(score for _, score in chosen))

    def differences(counts_RE: np.ndarray) -> np.ndarray:
        means: dict[tuple[str, str], np.ndarray] = {}
        for label, scores in wanted.items():
            of_seeds = [one.values(scores, counts_RE) for one in reports[label]]
            means |= {(label, score): np.mean([values[score] for values in of_seeds], axis=0) for score in scores}
        return np.stack([means[label, score] - means[baseline, score] for label, score in chosen])

    return bootstrap_differences(differences, exams, seed=seed, bootstrap_samples=bootstrap_samples)
