"""The page of a run: its training, scores beside baselines and oracles, findings, confidence, curves, topics, data, and
all exams of test.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.pages.exam_card import data_uri
from framework.pages.exam_list import exam_list
from framework.pages.plot import Figure, Key, Plot, span
from framework.pages.records import read_records
from framework.pages.render import render
from framework.pages.run_data import (
    ScoredExam,
    data_card,
    listed_exams,
    read_exams,
    read_nearest,
    read_topics,
    topic_rows,
    training_lines,
)
from framework.recipe import load_saved_recipe
from framework.runtime.files import atomic_write, read_object, reading
from framework.scoring.table import (
    CONFIDENCE,
    HIGH,
    LABELS,
    LOW,
    Scores,
    describe_reports,
    legend,
    score_table,
    table_columns,
    verdict,
)

FINDINGS = "findings_f1/"  # and an attribute
NOT_LOSSES = (
    "lr",
    "gradient_norm",
    "exams_per_s",
    "images_per_s",
    "tokens_per_s",
    "tflop_per_s",
    "mfu",
    "padding_share",
    "step_s",
    "data_wait_s",
    "memory_gib",
)  # curves in TensorBoard alone
FEW = 40  # points of a curve that each have a mark
OWN = {LABELS["model"]: "own main", LABELS[LOW]: "own", LABELS["model_on_unseen_reports"]: "own"}  # styles of rows


def write_page(run: Path, components: Any) -> Path:
    """Writes `run/report.html` from the files of the run and its exams.

    Args:
        components: `exams` by split and the `tokenizer`, such as `RunComponents`.
    """
    path, hint = run / "scores.json", "Delete it; `launch.py evaluate RUN` writes it again."
    scores = read_object(path, hint)
    with reading(path, hint):
        page = _render(run, scores, components)
    atomic_write(run / "report.html", page)
    return run / "report.html"


def _render(run: Path, scores: dict[str, Any], components: Any) -> str:
    # A model that was copied to another place has no records beside it.
    curves = read_curves(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else {}
    test = scores.get("test")
    exams = read_exams(run)
    topics = read_topics(run, len(exams))
    context = {
        "title": f"{run.parent.name} / {run.name}",
        "about": [f"scores on {scores['segmentation']}"],
        "summary": [*training_lines(run, components.exams), *(_summary(test) if test else ())],
        "bars": _bars(run, test) if test else [],
        "splits": [_scores(split, scores[split]) for split in ("test", "val") if split in scores],
        "attributes": _attributes(test, exams) if test else None,
        "confidence": _confidence(test[CONFIDENCE]) if test and CONFIDENCE in test else None,
        "curves": [_panel(title, lines) for title, lines in curves.items()],
        "topics": data_uri((run / "topics.png").read_bytes()) if (run / "topics.png").is_file() else None,
        "topic_rows": topic_rows(topics, exams),
        "data": data_card(components.exams, components.tokenizer),
    }
    used = len(render("run.html.j2", **context, exams=None).encode())
    nearest = read_nearest(run, components.exams.get("train"))
    cards = listed_exams(exams, components.exams.get("test"), topics, is_calibrated(test), nearest)
    return render("run.html.j2", **context, exams=exam_list(cards, used) if cards else None)


def is_calibrated(test: Scores | None) -> bool:
    """Whether the words of the test exams have the confidence of a calibrated model."""
    return bool(test and test.get(CONFIDENCE, {}).get("temperature") is not None)


def _summary(scores: Scores) -> list[str]:
    """What the model is better than, how varied its reports are, and what is never right."""
    better = [line.partition(". Difference")[0] + "." for line in verdict(scores)[:1]]
    values = {name.split("/", 1)[1]: value for name, value in scores["model"].items() if name.startswith(FINDINGS)}
    never = [name.replace("_", " ") for name, value in values.items() if not value]
    if never:
        better.append(f"{len(never)} of {len(values)} attributes are never right: {', '.join(never)}.")
    return better + describe_reports(scores)


def _bars(run: Path, scores: Scores) -> list[Figure]:
    """The monitored score and the findings F1, each beside baselines and oracles."""
    recipe = run / "model" / "recipe.yaml"
    monitored = load_saved_recipe(recipe).evaluate.monitored if recipe.is_file() else ""
    names = [name for name in dict.fromkeys([monitored, "findings_f1"]) if name in scores["model"]]
    return [_bar(name, scores) for name in names or table_columns(scores)[:1]]


def _bar(name: str, scores: Scores) -> Figure:
    rows = [(row, label) for row, label in LABELS.items() if row not in (LOW, HIGH) and name in scores.get(row, {})]
    plot = Plot(f"{name} on test", height=90 + 26 * len(rows))
    plot.y_labels([label for _, label in rows])
    ends = [scores[end][name] for end in (LOW, HIGH) if name in scores.get(end, {})]
    values = [scores[row][name] for row, _ in rows]
    plot.axes.set_xlim(*span([0.0, *values, *ends]))
    for place, (row, label) in enumerate(rows):
        plot.bar(scores[row][name], place, 0 if row == "model" else None, title=f"{label}: {scores[row][name]:.3f}")
        if row == "model" and ends:
            plot.interval(ends[0], ends[1], place)
        plot.beside(place, f"{scores[row][name]:.3f}")
    listed = ", ".join(f"{label} {scores[row][name]:.3f}" for row, label in rows)
    interval = f"; 95 % interval of the model {ends[0]:.3f} to {ends[1]:.3f}" if ends else ""
    return Figure(name, plot.svg(f"{name} on test: {listed}{interval}"), caption="Line: 95 % interval." if ends else "")


def _baselines(scores: Scores) -> list[str]:
    return [name for name in ("fixed_report", "nearest_image") if name in scores]


def _scores(split: str, scores: Scores) -> dict[str, Any]:
    header, rows = score_table(scores)
    return {
        "name": split,
        "header": header,
        "rows": [{"cells": row, "style": OWN.get(row[0])} for row in rows],
        "legend": legend(scores),
        "notes": verdict(scores),
    }


def _attributes(scores: Scores, exams: Sequence[ScoredExam]) -> dict[str, Any]:
    """F1 of each attribute, of the model and of the baselines that it should beat, and how often it is stated."""
    shown = ["model", *_baselines(scores)]
    names = sorted(name for name in scores["model"] if name.startswith(FINDINGS))
    counts = Counter((each.attribute, each.kind) for exam in exams for each in exam.compared)
    rows = []
    for name in names:
        attribute = name.removeprefix(FINDINGS)
        agreed, wrong, missed, invented = (counts[attribute, k] for k in ("agreed", "wrong", "missed", "invented"))
        # An aspect that follows from other findings has no counts of its own.
        known = any((agreed, wrong, missed, invented))
        numbers = [agreed + wrong + missed, agreed + wrong + invented, agreed, wrong, missed, invented]
        rows.append(
            {
                "name": attribute.replace("_", " "),
                "never": "never written" if known and not numbers[1] else "never right" if known and not agreed else "",
                "counts": numbers if known else ["-"] * len(numbers),
                "values": [f"{scores[row].get(name, 0):.3f}" for row in shown],
            }
        )
    return {
        "columns": ["in references", "written", "agreed", "wrong", "missed", "invented"],
        "shown": shown,
        "rows": rows,
    }


def _confidence(found: Mapping[str, Any]) -> dict[str, Any]:
    """How much the confidence is worth: the risk-coverage curve of exams, and how often findings are right."""
    risk = Plot("share of exams, the most confident first", "risk: 1 - findings F1 of the exam", height=240)
    risk.axes.set_xlim(0, 1)
    risk.axes.set_ylim(*span([0.0, *(value for _, value in found["curve"])]))
    risk.line([(0.0, found["risk"]), (1.0, found["risk"])], 6, "thin", "all exams")
    risk.line([tuple(point) for point in found["curve"]], 0)
    described = f"Risk of the most confident exams: {', '.join(f'{c:.0%} {r:.3f}' for c, r in found['curve'][4::5])}"
    right = Plot("confidence of a finding", "share that the reference states", height=240)
    right.axes.set_xlim(0, 1)
    right.axes.set_ylim(0, 1.02)
    right.line([(0, 0), (1, 1)], 6, "thin", "as often right as it says")
    right.line([(confidence, share) for confidence, share, _ in found["reliability"]], 0)
    for confidence, share, items in found["reliability"]:
        right.mark(confidence, share, 0, 7, title=f"{items} findings, confidence {confidence:.2f}: {share:.2f} right")
    shares = ", ".join(f"{confidence:.2f} {share:.2f}" for confidence, share, _ in found["reliability"])
    temperature = found["temperature"]
    calibrated = (
        "The confidence is not calibrated: the model has no temperature."
        if temperature is None
        else f"Calibrated on validation by the temperature {temperature:.3g}."
    )
    lines = [
        f"{calibrated} Of {found['findings']} findings in {found['exams']} exams, confidence and share that is right "
        f"differ by {found['calibration_error']:.3f} on average (expected calibration error).",
        f"The area under the risk-coverage curve (AURC) is {found['aurc']:.3f}; a confidence without information has "
        f"{found['risk']:.3f}, the risk of all exams.",
    ]
    return {
        "lines": lines,
        "figures": [
            Figure(
                "Risk by coverage",
                risk.svg(described),
                caption="Exams by the mean confidence (geometric) of all words of their report. Thin: all exams.",
            ),
            Figure("Confidence and truth", right.svg(f"Confidence and share that is right: {shares}")),
        ],
    }


def read_curves(path: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """The records of a run by what shares an axis: panel -> line -> (step, value).

    The loss with its terms is one panel, the metrics of each term are one, and each validation score is; scores that
    differ only in a number, such as those of BLEU, share one. Scores of single attributes have a table instead.
    """
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, step, value in read_records(path):
        split, *names = name.split("/")
        if split == "train" and names[0] not in NOT_LOSSES:
            panel, label = "/".join([split, *names[:-1]]), names[-1]
        elif split == "val" and len(names) == 1:
            panel, label = re.sub(r"_\d+$", "", name), names[0]
        else:
            continue
        found.setdefault(panel, {}).setdefault(label, []).append((step, value))
    return found


def _panel(title: str, lines: dict[str, list[tuple[int, float]]]) -> Figure:
    plot = Plot("step", height=230)
    for series, points in enumerate(lines.values()):
        plot.line(points, series)
        if len(points) <= FEW:
            for step, value in points:
                plot.mark(step, value, series, 6)
    keys = [Key(series, label) for series, label in enumerate(lines)]
    return Figure(title, plot.svg(f"{title} by step: {', '.join(lines)}"), keys=keys if len(keys) > 1 else ())
