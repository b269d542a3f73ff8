"""The page that compares runs on the same test exams: scores and their differences, and the reports of each exam."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from framework.data.loading import ExamSet
from framework.pages.exam_card import exam_card
from framework.pages.exam_list import ListedExam, exam_list
from framework.pages.plot import Figure, Plot, span
from framework.pages.render import render
from framework.pages.run_data import ScoredExam
from framework.scoring.table import table_columns

SIGN = {True: "↑", False: "↓"}


@dataclass(frozen=True)
class Difference:
    """The difference of a score to that of the first run, and the ends of its 95 % interval if it has one."""

    value: float
    ends: tuple[float, float] | None

    @property
    def is_sure(self) -> bool:
        """Whether the interval excludes 0."""
        return self.ends is not None and (self.ends[0] > 0 or self.ends[1] < 0)


@dataclass(frozen=True)
class ComparedRun:
    """A run on the page.

    Attributes:
        values: scores by name.
        differences: to the first run, by score; empty for the first run.
        lines: what it writes.
    """

    name: str
    exams: Sequence[ScoredExam]
    values: Mapping[str, float]
    differences: Mapping[str, Difference] = field(default_factory=dict)
    lines: Sequence[str] = ()


def draw_comparison(
    runs: Sequence[ComparedRun], images: ExamSet | None, higher: Mapping[str, bool], about: str, unit: str
) -> str:
    """The page as HTML.

    Args:
        images: of the test exams; None where they are not at hand.
        higher: whether a higher value is better, by score.
        unit: what the bootstrap resampled.
    """
    names = table_columns({"model": dict(runs[0].values)})
    context = {
        "title": f"Comparison of {len(runs)} runs",
        "about": [f"{len(runs[0].exams)} test exams", about],
        "summary": _summary(runs, names, higher),
        "unit": unit,
        "names": [f"{name} {SIGN[higher[name]]}" for name in names],
        "rows": [_row(run, names) for run in runs],
        "variety": [(run.name, run.lines) for run in runs],
        "figures": [_figure(runs, name) for name in names if any(_ends(run, name) for run in runs)],
        "attributes": _attributes(runs),
        "runs": [run.name for run in runs],
    }
    used = len(render("compare.html.j2", **context, exams=None).encode())
    return render("compare.html.j2", **context, exams=exam_list(_listed(runs, images), used, "exam_of_runs"))


def _ends(run: ComparedRun, name: str) -> tuple[float, float] | None:
    difference = run.differences.get(name)
    return None if difference is None else difference.ends


def _summary(runs: Sequence[ComparedRun], names: Sequence[str], higher: Mapping[str, bool]) -> list[str]:
    """In which scores each run is better or worse than the first one."""
    lines = []
    for run in runs[1:]:
        found: dict[bool, list[str]] = {True: [], False: []}
        for name in names:
            difference = run.differences.get(name)
            if difference is not None and difference.is_sure:
                found[(difference.value > 0) == higher[name]].append(name)
        parts = [f"better in {', '.join(found[True])}"] * bool(found[True])
        parts += [f"worse in {', '.join(found[False])}"] * bool(found[False])
        said = " and ".join(parts) or "neither better nor worse in any score"
        lines.append(f"{run.name} is {said} than {runs[0].name}, by intervals that exclude 0.")
    return lines


def _row(run: ComparedRun, names: Sequence[str]) -> dict[str, Any]:
    cells = []
    for name in names:
        difference = run.differences.get(name)
        ends = None if difference is None else difference.ends
        cells.append(
            {
                "value": f"{run.values[name]:.3f}",
                "difference": "" if difference is None else f"{difference.value:+.3f}",
                "interval": "" if ends is None else f"[{ends[0]:+.3f}, {ends[1]:+.3f}]",
                "is_sure": difference is not None and difference.is_sure,
            }
        )
    return {"name": run.name, "cells": cells}


def _figure(runs: Sequence[ComparedRun], name: str) -> Figure:
    """The differences of a score to the first run with their intervals."""
    shown = [(run, difference) for run in runs[1:] if (difference := run.differences.get(name)) is not None]
    plot = Plot(f"{name}, difference to {runs[0].name}", height=90 + 34 * len(shown))
    plot.y_labels([run.name for run, _ in shown])
    ends = [end for _, difference in shown for end in difference.ends or (difference.value,)]
    plot.axes.set_xlim(*span([0.0, *ends]))
    plot.level(0, "equal")
    described = []
    for place, (run, difference) in enumerate(shown):
        if difference.ends is not None:
            plot.interval(*difference.ends, place)
        plot.mark(difference.value, place, place + 1, title=f"{run.name}: {difference.value:+.3f}")
        described.append(f"{run.name} {difference.value:+.3f}")
    return Figure(name, plot.svg(f"{name}, difference to {runs[0].name}: {', '.join(described)}"))


def _attributes(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """For each attribute that references state: how many findings, and how many each run has right and invents."""
    counts = [Counter((each.attribute, each.kind) for exam in run.exams for each in exam.compared) for run in runs]
    names = sorted({attribute for count in counts for attribute, _ in count})
    rows = []
    for name in names:
        stated = sum(counts[0][name, kind] for kind in ("agreed", "wrong", "missed"))
        cells = [f"{own[name, 'agreed']} / {own[name, 'wrong'] + own[name, 'invented']}" for own in counts]
        rows.append([name.replace("_", " "), str(stated), *cells])
    return rows


def _listed(runs: Sequence[ComparedRun], images: ExamSet | None) -> list[ListedExam]:
    found = []
    for place, exam in enumerate(runs[0].exams):
        written = [(run.name, run.exams[place]) for run in runs]
        known = [each.agreement for _, each in written if each.agreement is not None]
        order = {
            "agreement": fmean(known) if known else None,
            "difference": max(known) - min(known) if known else None,
        }
        views = None if images is None else partial(images.cache.images, exam.id)
        cards = [partial(_card, written, None)]
        found.append(
            ListedExam(
                order,
                [each for _, own in written for each in own.compared],
                [partial(_card, written, views), *cards] if views else cards,
            )
        )
    return found


def _card(written: Sequence[tuple[str, ScoredExam]], views: Any) -> dict[str, Any]:
    """What the macro `exam_of_runs` shows: the card of the first run, and the reports of all."""
    shown = None if views is None else views()
    cards = [
        exam_card(exam.id, shown if number == 0 else None, exam.report, None, exam.reference)
        for number, (_, exam) in enumerate(written)
    ]
    f1 = ["-" if exam.agreement is None else f"{exam.agreement:.2f}" for _, exam in written]
    runs = [{**card, "run": name, "f1": value} for (name, _), card, value in zip(written, cards, f1)]
    return {**cards[0], "runs": runs}
