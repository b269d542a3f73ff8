"""The rows of a grid's table: each setting over its seeds, and against the baseline on resampled exams.

Shapes: E exams, R resamples of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from framework.grid.rescoring import NotComparableError, Written
from framework.grid.results import CellResult, Comparison, Row
from framework.grid.statistics import RESAMPLES, Difference, bootstrap_differences, holm, spread
from framework.registry import did_you_mean

SLOW_RESAMPLES = 500  # of a metric that is called anew on each, which takes milliseconds


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
    """Rows in the order given, the number of exams that they are compared over, and what a reader must know.

    A value is a mean over the seeds that are done. A difference is that of two such means, each over all seeds that its
    own row has done, so that it is the difference of the numbers in the table. Exams are resampled, seeds are not: p
    and interval tell whether another choice of exams might turn the difference around, not whether other seeds might;
    the deviation tells of those. Holm's correction is over all rows that are compared, apart for each metric.

    Args:
        groups: label, axis -> label of its value, and cells (one a seed), for each row.
        metrics: such as test/bleu_4, val/cider, test/findings_f1/margin, test/bleu_4_char.
        baseline: a label; None: nothing is compared.

    Raises:
        ValueError: no row has this label, or no cell that is done has this score.
    """
    rows = [Group(*group) for group in groups]
    _check(rows, metrics, baseline)
    notices = [notice for group in rows for notice in _told(group, metrics)]
    versus: dict[tuple[str, str], Comparison] = {}
    exams: dict[str, int] = {}
    if compare == "paired_bootstrap" and baseline is not None:
        scores: dict[str, list[str]] = {}
        for metric in dict.fromkeys(metrics):
            split, _, score = metric.partition("/")
            scores.setdefault(split, []).append(score)
        for split, wanted in scores.items():
            found, over, told = _versus(rows, baseline, split, wanted, seed)
            versus |= {(label, f"{split}/{score}"): comparison for (label, score), comparison in found.items()}
            notices += told
            if found:
                exams[split] = over
    first = next(iter(exams), "")
    for split, over in exams.items():
        if over != exams[first]:
            notices.append(f"{split}/...: compared over {over} exams, {first}/... over {exams[first]}")
    return tuple(_row(group, metrics, versus) for group in rows), exams.get(first), tuple(notices)


def _check(rows: Sequence[Group], metrics: Sequence[str], baseline: str | None) -> None:
    labels = [group.label for group in rows]
    if twice := [label for number, label in enumerate(labels) if label in labels[:number]]:
        raise ValueError(f"two rows are called '{twice[0]}'; expected a label for each")
    if baseline is not None and baseline not in labels:
        guess = did_you_mean(baseline, labels)
        raise ValueError(f"report.baseline: no row is called '{baseline}'.{guess} Rows: {', '.join(labels)}")
    known = {name: None for group in rows for cell in group.done for name in cell.scores}
    all_done = all(cell.status == "done" for group in rows for cell in group.cells)
    for metric in metrics:
        if known and metric not in known and all_done:  # until then, a cell that gives it may still be to come
            whole = [name for name in known if name.count("/") == 1]
            raise ValueError(
                f"report.metrics: no cell has a score '{metric}'.{did_you_mean(metric, known)} "
                f"Known: {', '.join(whole)}, and parts of them such as test/findings_f1/margin"
            )


def _told(group: Group, metrics: Sequence[str]) -> list[str]:
    """What is missing in a row."""
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


def _versus(
    rows: Sequence[Group], baseline: str, split: str, scores: Sequence[str], seed: int
) -> tuple[dict[tuple[str, str], Comparison], int, list[str]]:
    """What compares with the baseline on a split, by label and score; over how many exams; and why the rest does not.

    Args:
        scores: without the split.
    """
    base = next(group for group in rows if group.label == baseline)
    if not base.done:
        return {}, 0, [f"nothing is compared on {split}: no seed of the baseline, {baseline}, is done"]
    try:
        first = Written(base.done[0], split)
        opened = {baseline: _opened(base, first)}
        exams = len(first.references)
        if exams < 2:
            raise NotComparableError(f"{exams} exam, of which there is only one resample")
    except NotComparableError as error:
        return {}, 0, [f"nothing is compared on {split}, because of the baseline, {baseline}: {error}"]
    notices: list[str] = []
    for group in rows:
        if group is not base and group.done:
            try:
                opened[group.label] = _opened(group, first)
            except NotComparableError as error:
                notices.append(f"{group.label}: not compared on {split}: {error}")
    compared = [key for score in scores for key in _comparable(opened, baseline, score, notices)]
    found = _found(opened, baseline, compared, seed, notices)
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
    opened: Mapping[str, Sequence[Written]], baseline: str, score: str, notices: list[str]
) -> list[tuple[str, str]]:
    """(label, score) of the rows whose score compares with the baseline's; notes why of the others."""
    first, compared = opened[baseline][0], []
    for label, written in opened.items():
        try:
            for one in written:
                one.check(score, first)
        except NotComparableError as error:
            notices.append(f"{label}: {first.split}/{score} is not compared: {error}")
            if label == baseline:
                return []  # and so no other row is; the baseline comes first
        else:
            compared += [(label, score)] if label != baseline else []
    return compared


def _found(
    opened: Mapping[str, Sequence[Written]],
    baseline: str,
    compared: Sequence[tuple[str, str]],
    seed: int,
    notices: list[str],
) -> dict[tuple[str, str], Difference]:
    """The difference of each (label, score) that has one on every resample; notes of the others why."""
    first = opened[baseline][0]
    split, exams = first.split, len(first.references)
    quick = [key for key in compared if first.has_sums(key[1])]
    found = dict(zip(quick, _differences(opened, baseline, quick, exams, seed, RESAMPLES))) if quick else {}
    slow = list(dict.fromkeys(score for _, score in compared if not first.has_sums(score)))
    for score in slow:  # each by itself: a metric of somebody's own may fail on a resample
        keys = [key for key in compared if key[1] == score]
        try:
            found |= zip(keys, _differences(opened, baseline, keys, exams, seed, SLOW_RESAMPLES))
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
        notices.append(f"{label}: {split}/{score} is not compared: it is no number on some resamples")
    return found


def _opened(group: Group, like: Written) -> list[Written]:
    return [like if cell is like.cell else Written(cell, like.split, like) for cell in group.done]


def _differences(
    opened: Mapping[str, Sequence[Written]],
    baseline: str,
    chosen: Sequence[tuple[str, str]],
    exams: int,
    seed: int,
    bootstrap_samples: int,
) -> list[Difference]:
    """Of each (label, score): its mean over seeds minus the baseline's."""
    wanted = {label: [score for name, score in chosen if name == label] for label, _ in chosen}
    wanted[baseline] = list(dict.fromkeys(score for _, score in chosen))

    def differences(counts_RE: np.ndarray) -> np.ndarray:
        means: dict[tuple[str, str], np.ndarray] = {}
        for label, scores in wanted.items():
            of_seeds = [one.values(scores, counts_RE) for one in opened[label]]
            means |= {(label, score): np.mean([values[score] for values in of_seeds], axis=0) for score in scores}
        return np.stack([means[label, score] - means[baseline, score] for label, score in chosen])

    return bootstrap_differences(differences, exams, seed=seed, bootstrap_samples=bootstrap_samples)
