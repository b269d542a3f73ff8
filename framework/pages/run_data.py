"""What the page of a run says of its training, its data and its exams, read from the files of the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from framework.checkpoint.format import checkpoints_of
from framework.data.loading import ExamSet
from framework.exam import Exam
from framework.models.topic_head import topic_name
from framework.pages.exam_card import exam_card, stored_words
from framework.pages.exam_list import ListedExam
from framework.pages.records import read_records
from framework.recipe import load_saved_recipe
from framework.runtime.files import read_lines, read_object, reading
from framework.text.findings.compare import Compared, agreement, compare
from framework.text.words import report_confidence

AGAIN = "Delete it; `launch.py evaluate RUN` writes it again."
COPY = "Copy the run again."
MANY = 20_000  # exams of which images are not compared
COPIES = 5  # exams with a copy that are named


@dataclass(frozen=True)
class ScoredExam:
    """An exam of test, as the run has scored it.

    Attributes:
        words: see `word_rows`; None if the words of this report are not known.
        attributes: that metrics read.
    """

    id: str
    report: str
    reference: str
    words: dict[str, Any] | None = None
    attributes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def compared(self) -> tuple[Compared, ...]:
        return compare(self.report, self.reference)

    @cached_property
    def agreement(self) -> float | None:
        return agreement(self.compared)

    @property
    def predicted_topic(self) -> int | None:
        """The topic that the model's topic head predicts."""
        found = (self.words or {}).get("topic")
        return None if found is None else int(found[0])


@dataclass(frozen=True)
class RunTopics:
    """The topics of a run.

    Attributes:
        labels: the topic of each test reference.
    """

    names: list[str]
    sizes: list[int]
    labels: list[int]


def read_exams(run: Path) -> list[ScoredExam]:
    """The test exams in their order; empty before they are scored."""
    path, words_path = run / "predictions" / "test.jsonl", run / "words" / "test.jsonl"
    words: dict[tuple[str, str], Any] = {}
    if words_path.is_file():
        with reading(words_path, AGAIN):
            rows = map(json.loads, read_lines(words_path))
            words = {(row["id"], row["report"]): {"grid": row["grid"], "words": row["words"], **row} for row in rows}
    if not path.is_file():
        return []
    with reading(path, AGAIN):
        return [
            ScoredExam(
                row["id"],
                row["prediction"],
                row["reference"],
                words.get((row["id"], row["prediction"])),
                row.get("attributes", {}),
            )
            for row in map(json.loads, read_lines(path))
        ]


def read_topics(run: Path, exams: int) -> RunTopics | None:
    """The topics in topics.json; None if it has none of that many test exams."""
    path = run / "topics.json"
    if not path.is_file():
        return None
    found = read_object(path, AGAIN)
    with reading(path, AGAIN):
        names = [topic_name(number, topic["words"]) for number, topic in enumerate(found["topics"])]
        labels = [int(label) for label in found["labels"].get("test", ())]
        return RunTopics(names, [topic["size"] for topic in found["topics"]], labels) if len(labels) == exams else None


def read_nearest(run: Path, train: ExamSet | None) -> dict[str, list[Exam]]:
    """The training exams nearest to test exams, by the test exam's id; empty where they are not known."""
    path = run / "nearest_exams.json"
    if train is None or not path.is_file():
        return {}
    by_id = {exam.id: exam for exam in train.exams}
    found = read_object(path, AGAIN)
    with reading(path, AGAIN):
        return {exam_id: [by_id[near] for near in own if near in by_id] for exam_id, own in found.items()}


def listed_exams(
    exams: Sequence[ScoredExam],
    images: ExamSet | None,
    topics: RunTopics | None,
    calibrated: bool,
    nearest: Mapping[str, Sequence[Exam]],
) -> list[ListedExam]:
    """The exams as cards: with all that is known of them, without where the model looked, and as text.

    Args:
        images: None where they are not at hand.
        nearest: see `read_nearest`.
    """
    found = []
    for place, exam in enumerate(exams):
        words = exam.words
        sure = None if words is None else report_confidence(stored_words(words))
        card = partial(
            exam_card,
            exam.id,
            report=exam.report,
            reference=exam.reference,
            calibrated=calibrated,
            true_topic=None if topics is None else topics.names[topics.labels[place]],
            predicted_topic=None
            if topics is None or exam.predicted_topic is None
            else topics.names[exam.predicted_topic],
            nearest=nearest.get(exam.id, ()),
        )
        plain = None if words is None else {**words, "grid": None, "words": [{**w, "heat": ""} for w in words["words"]]}
        views = (lambda exam_id: None) if images is None else images.cache.images
        found.append(
            ListedExam(
                {"agreement": exam.agreement, "confidence": sure},
                exam.compared,
                (
                    partial(_with_views, card, views, exam.id, words),
                    partial(_with_views, card, views, exam.id, plain),
                    partial(card, images_VCHW=None, rows=None),
                ),
            )
        )
    return found


def _with_views(card: Any, views: Any, exam_id: str, rows: Mapping[str, Any] | None) -> dict[str, Any]:
    made: dict[str, Any] = card(images_VCHW=views(exam_id), rows=rows)
    return made


def topic_rows(topics: RunTopics | None, exams: Sequence[ScoredExam]) -> list[list[str]]:
    """A row for each topic that test exams have: those with the least agreement of findings first."""
    if topics is None:
        return []
    rows = []
    for number, name in enumerate(topics.names):
        own = [exam for exam, label in zip(exams, topics.labels) if label == number]
        known = [exam.agreement for exam in own if exam.agreement is not None]
        right = [exam.predicted_topic == number for exam in own if exam.predicted_topic is not None]
        if own:
            mean = fmean(known) if known else None
            cells = [name, str(topics.sizes[number]), str(len(own)), "-" if mean is None else f"{mean:.3f}"]
            rows.append((mean is None, mean, [*cells, f"{sum(right)} of {len(right)}" if right else "-"]))
    return [cells for *_, cells in sorted(rows, key=lambda row: row[:2])]


def training_lines(run: Path, exams: Mapping[str, ExamSet]) -> list[str]:
    """What was trained on what, when, how long, and at what cost, as far as the run has the files."""
    recipe_file, environment_file = run / "model" / "recipe.yaml", run / "environment.json"
    if not recipe_file.is_file():
        return []
    recipe = load_saved_recipe(recipe_file)
    counts = ", ".join(f"{len(own)} {split}" for split, own in exams.items())
    data = f"{recipe.data.dataset.name} ({counts} exams)" if counts else recipe.data.dataset.name
    lines = [f"{recipe.model.encoder.name} and {recipe.model.decoder.name}, trained on {data}."]
    environment = read_object(environment_file, COPY) if environment_file.is_file() else {}
    launch, started = environment.get("launch", {}), environment.get("started")
    speed = _speed(run / "metrics.jsonl")
    newest = checkpoints_of(run / "checkpoints")[:1]
    state = read_object(newest[0] / "trainer.json", COPY) if newest else {}
    parts = [f"{state['epoch']} of {recipe.train.epochs} epochs, {state['step']} steps"] if state else []
    parts += [f"{_duration(speed['seconds'])} of steps"] if speed else []
    if "device" in launch:
        processes = launch["processes"]
        parts.append(f"{processes} process{'es' * (processes != 1)} on {launch['device']} in {launch['precision']}")
    parts += [f"started on {datetime.fromisoformat(started):%Y-%m-%d}"] if started else []
    lines += [f"Training: {'; '.join(parts)}."] if parts else []
    if state.get("best_score") is not None:
        best = f"{recipe.evaluate.monitor_words} {state['best_score']:.3f}"
        lines.append(f"The model is that of step {state['best_step']}, the best on validation: {best}.")
    cost = [f"{launch['parameters'] / 1e6:.1f} M parameters"] if "parameters" in launch else []
    if speed:
        cost += [f"{speed['exams']:.0f} exams/s", f"at most {speed['memory']:.1f} GiB of memory"]
    return [*lines, f"Cost: {', '.join(cost)}."] if cost else lines


def _speed(path: Path) -> dict[str, float]:
    """Seconds of all steps that have a record, exams per second, and peak memory in GiB; empty without records.

    The steps of earlier starts of the run count, validations do not.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for name, step, value in read_records(path) if path.is_file() else ():
        found.setdefault(name, []).append((step, value))
    steps = found.get("train/step_s")
    if not steps:
        return {}
    befores = [0, *(step for step, _ in steps)]
    return {
        "seconds": sum(value * (step - before) for (step, value), before in zip(steps, befores)),
        "exams": median(value for _, value in found["train/exams_per_s"]),
        "memory": max(value for _, value in found["train/memory_gib"]),
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def data_card(exams: Mapping[str, ExamSet], tokenizer: Any) -> dict[str, Any]:
    """The splits, what they share, and the vocabulary."""
    train = {exam.report for exam in exams["train"].exams} if "train" in exams else set()
    rows = []
    for split, own in exams.items():
        reports = [exam.report for exam in own.exams]
        rows.append(
            [
                split,
                str(len(reports)),
                str(len({exam.patient for exam in own.exams})),
                str(sum(len(exam.views) for exam in own.exams)),
                str(len(set(reports))),
                "-" if split == "train" or not train else str(sum(report in train for report in reports)),
            ]
        )
    notes = []
    if tokenizer is not None:
        notes.append(f"Vocabulary: {len(tokenizer)} tokens, {tokenizer.segmentation}.")
    copies = _copies(exams)
    if copies:
        named = ", ".join(copies[:COPIES]) + (" and others" if copies[COPIES:] else "")
        notes.append(f"Warning: {len(copies)} exams of val and test have an image that is also in train: {named}.")
    return {"rows": rows, "notes": notes}


def _copies(exams: Mapping[str, ExamSet]) -> list[str]:
    """Exams of other splits with a view whose pixels, as the model sees them, are those of a view in train."""
    if "train" not in exams or sum(map(len, exams.values())) > MANY:
        return []

    def hashes(own: ExamSet, exam_id: str) -> set[bytes]:
        return {
            hashlib.sha256(view.tobytes()).digest() for view in own.cache.images(exam_id) if view.min() < view.max()
        }

    train = set[bytes]().union(*(hashes(exams["train"], exam.id) for exam in exams["train"].exams))
    others = [(own, exam) for split, own in exams.items() if split != "train" for exam in own.exams]
    return [exam.id for own, exam in others if hashes(own, exam.id) & train]
