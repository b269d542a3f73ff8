"""Looks at every exam before a run does, and lists all that is wrong at once instead of the first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from framework.exam import Exam, ExamError

if TYPE_CHECKING:
    from framework.exam import ExamSource

SPLITS = ("train", "val", "test")


class ExamWarning(ExamError):  # noqa: N818 - it is a warning
    """Something about an exam that a run survives but that a person should know."""


def listing(problems: Sequence[ExamError], most: int = 20) -> str:
    """One problem a line, cut off after `most` with the count of the rest."""
    lines = [f"  {problem}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"  ... and {len(problems) - most} more")
    return "\n".join(lines)


def check(source: ExamSource, progress: Callable[[int, int], None] | None = None) -> list[ExamError]:
    """Loads every view of every split.

    Args:
        source: the data set.
        progress: called with (exams done, exams in all) after each exam.

    Returns:
        Every problem, those of `ExamWarning` among them, in the order of the splits. Empty: the data are fine.

    Raises:
        ValueError: the source cannot list its exams at all; its own message says why.
    """
    splits = source.splits()
    problems = check_splits(splits)
    total = sum(len(exams) for exams in splits.values())
    first: dict[bytes, tuple[str, str, str]] = {}  # pixels -> split, exam, view that showed them first
    done = 0
    for split, exams in splits.items():
        for exam in exams:
            if not exam.report.strip():
                problems.append(ExamError(exam.id, f"the report is empty (split {split})"))
            problems += _views(exam, split, first)
            done += 1
            if progress is not None:
                progress(done, total)
    return problems


def check_splits(splits: Mapping[str, Sequence[Exam]]) -> list[ExamError]:
    """What is wrong with the splits themselves, before any view is loaded: empty ones, and what two of them share."""
    return [*_splits(splits), *_shared(splits)]


def _splits(splits: Mapping[str, Sequence[Exam]]) -> Iterator[ExamError]:
    for name in SPLITS:
        if not splits.get(name):
            yield ExamError("(none)", f"the split '{name}' has no exams")
    for name in splits:
        if name not in SPLITS:
            yield ExamWarning("(none)", f"the split '{name}' is never used; known: {', '.join(SPLITS)}")


def _shared(splits: Mapping[str, Sequence[Exam]]) -> Iterator[ExamError]:
    """Ids that stand twice, and patients whom splits share."""
    home: dict[str, str] = {}
    patients: dict[str, str] = {}
    told = set()
    for split, exams in splits.items():
        for exam in exams:
            if exam.id in home:
                where = f"splits {home[exam.id]} and {split}" if home[exam.id] != split else f"split {split} twice"
                yield ExamError(exam.id, f"the id stands in {where}")
            home.setdefault(exam.id, split)
            other = patients.setdefault(exam.patient, split)
            if other != split and (exam.patient, split) not in told:
                told.add((exam.patient, split))
                yield ExamError(exam.id, f"patient {exam.patient} is in splits {other} and {split}: scores would lie")


def _views(exam: Exam, split: str, first: dict[bytes, tuple[str, str, str]]) -> Iterator[ExamError]:
    if not exam.views:
        yield ExamError(exam.id, f"it has no view (split {split})")
    for view in exam.views:
        try:
            image = view.load()
        except (OSError, ValueError) as error:
            yield ExamError(exam.id, f"view {view.name} (split {split}): {error}")
            continue
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            yield ExamError(
                exam.id, f"view {view.name} is {image.dtype} of shape {image.shape}, not uint8 H x W or H x W x 3"
            )
            continue
        if image.size == 0 or image.min() == image.max():
            yield ExamWarning(exam.id, f"view {view.name} (split {split}) is blank: every pixel is the same")
            continue  # blank frames are alike without being one frame
        key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
        other, exam_id, name = first.setdefault(key, (split, exam.id, view.name))
        if other != split:
            yield ExamWarning(
                exam.id, f"view {view.name} of split {split} is pixel by pixel view {name} of exam {exam_id} in {other}"
            )
