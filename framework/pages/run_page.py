"""The page of a run: its scores beside baselines and oracles, curves, topics, and exams to look at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.pages.exam_card import SHOWN, data_uri, exam_card
from framework.pages.plot import Figure, Key, Plot
from framework.pages.records import read_records
from framework.pages.render import render
from framework.runtime.files import atomic_write, read_lines, read_object, reading
from framework.scoring.table import (
    HIGH,
    LABELS,
    LOW,
    SHORT,
    VERSUS,
    Scores,
    describe_reports,
    legend,
    score_table,
    table_columns,
    verdict,
)

if TYPE_CHECKING:
    from framework.build import RunComponents

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


def write_page(run: Path, components: RunComponents) -> Path:
    """Writes `run/report.html` from the files of the run and the images of its test exams."""
    path, hint = run / "scores.json", "Delete it; `launch.py evaluate RUN` writes it again."
    scores = read_object(path, hint)
    with reading(path, hint):
        page = _render(run, scores, components)
    atomic_write(run / "report.html", page)
    return run / "report.html"


def _render(run: Path, scores: dict[str, Any], components: RunComponents) -> str:
    # A model that was copied to another place has no records beside it.
    curves = read_curves(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else {}
    return render(
        "run.html.j2",
        title=f"{run.parent.name} / {run.name}",
        about=[f"scores on {scores['segmentation']}"],
        summary=_summary(scores["test"]) if "test" in scores else [],
        cards=_cards(scores["test"]) if "test" in scores else [],
        splits=[_scores(split, scores[split]) for split in ("test", "val") if split in scores],
        attributes=_attributes(scores["test"]) if "test" in scores else None,
        curves=[_panel(title, lines) for title, lines in curves.items()],
        topics=data_uri((run / "topics.png").read_bytes()) if (run / "topics.png").is_file() else None,
        exams=_exams(run, components),
    )


def _summary(scores: Scores) -> list[str]:
    """What the model is better than, and how varied its reports are."""
    better = [line.partition(". Difference")[0] + "." for line in verdict(scores)[:1]]
    return better + describe_reports(scores)


def _cards(scores: Scores) -> list[tuple[str, str, list[str], str]]:
    """The scores of the model on the test split, each with those of the baselines that it should beat."""
    cards = []
    for name in table_columns(scores):
        rows = _baselines(scores)
        if (strongest := scores.get(VERSUS, {}).get(name, {}).get("baseline")) not in (None, *rows):
            rows = [strongest, *rows]
        lines = [f"{SHORT[row]}: {scores[row][name]:.3f}" for row in rows]
        ends = f"[{scores[LOW][name]:.3f}, {scores[HIGH][name]:.3f}]" if name in scores.get(LOW, {}) else ""
        cards.append((f"{name}, test", f"{scores['model'][name]:.3f}", lines, ends))
    return cards


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


def _attributes(scores: Scores) -> dict[str, Any]:
    """F1 of each attribute, of the model and of the baselines that it should beat."""
    shown = ["model", *_baselines(scores)]
    names = sorted(name for name in scores["model"] if name.startswith("findings_f1/"))
    rows = [(name.split("/", 1)[1], [f"{scores[row].get(name, 0):.3f}" for row in shown]) for name in names]
    return {"columns": shown, "rows": rows}


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


def _exams(run: Path, components: RunComponents) -> list[dict[str, Any]]:
    path, words_path = run / "predictions" / "test.jsonl", run / "words" / "test.jsonl"
    if not path.is_file():
        return []
    cache = components.exams["test"].cache
    hint = "Delete it; `launch.py evaluate RUN` writes it again."
    words: dict[tuple[str, str], Any] = {}
    if words_path.is_file():  # runs of versions before 0.6 have none
        with reading(words_path, hint):
            words = {(row["id"], row["report"]): row for row in map(json.loads, read_lines(words_path))}
    with reading(path, hint):
        rows = [json.loads(line) for line in read_lines(path)[:SHOWN]]
        cards = []
        for row in rows:
            exam_id, report = row["id"], row["prediction"]
            own = words.get((exam_id, report))
            cards.append(exam_card(exam_id, cache.images(exam_id), report, own, row["reference"]))
        return cards
