"""Checks a whole data set and lists all problems at once."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from framework.data.image_file import is_blank
from framework.exam import Exam
from framework.registry import did_you_mean
from framework.runtime.errors import Problem, UserError

if TYPE_CHECKING:
    from framework.exam import ExamSource

SPLITS = ("train", "val", "test")
# Other names of the splits.
SPLIT_ALIASES = {
    "training": "train",
    "validation": "val",
    "validate": "val",
    "valid": "val",
    "dev": "val",
    "testing": "test",
}


@dataclass(frozen=True)
class CheckResult:
    """Problems of a data set in the order of its exams.

    Attributes:
        errors: problems with which no run starts.
        warnings: what a person should know, such as blank images.
        notices: what the scores of this data set depend on.
    """

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def require_split(split: str) -> None:
    """Raises UserError if no data set has a split of this name."""
    if split not in SPLITS:
        hint = did_you_mean(split, SPLITS).strip()
        raise UserError(
            "unknown-name", f"no split '{split}'", place="--split", expected=f"one of {', '.join(SPLITS)}", hint=hint
        )


def nearest_split(name: str) -> str | None:
    """The split that a name means, or None: `Train` and `dev` are other spellings."""
    name = name.strip().lower()
    return SPLIT_ALIASES.get(name, name if name in SPLITS else None)


class DatasetError(UserError):
    """Exams that cannot be used. Its text lists the first problems.

    Attributes:
        every: all problems, each with its place.
        readable: the exams and views that could be read, in which `check` looks for further problems.
    """

    every: tuple[Problem, ...] = ()
    readable: Mapping[str, Sequence[Exam]] = MappingProxyType({})

    @classmethod
    def of_exams(
        cls, errors: Sequence[UserError], place: object, readable: Mapping[str, Sequence[Exam]]
    ) -> DatasetError:
        """The problems of all errors, at a place such as a file."""
        error = cls.of(first_problems(errors, place))
        error.every = tuple(first_problems(errors, place, most=sys.maxsize))
        error.readable = readable
        return error


def check(source: ExamSource, progress: Callable[[int, int], None] | None = None) -> CheckResult:
    """Checks the splits and loads every view.

    Args:
        progress: called with (exams done, exams in total) after each exam.

    Raises:
        UserError: the source cannot list its exams.
    """
    unusable: tuple[Problem, ...] = ()
    listed: Mapping[str, Sequence[Exam]]
    try:
        listed = source.splits()
        result = check_splits(listed)
    except DatasetError as error:
        listed, unusable = error.readable, error.every
        result = CheckResult([*unusable, *(problem for exams in listed.values() for problem in _texts(exams))])
    splits = {name: exams for name, exams in listed.items() if name in SPLITS}
    result.notices.extend(_repeated_reports(splits))
    total = sum(len(exams) for exams in splits.values())
    first: dict[bytes, tuple[str, str, str]] = {}  # hash of pixels -> split, exam and view in which they came first
    done = 0
    for split, exams in splits.items():
        for exam in exams:
            if not exam.report.strip() and not unusable:
                result.errors.append(Problem("empty-report", f"the report is empty (split {split})", f"exam {exam.id}"))
            if exam.views or not unusable:
                _check_views(exam, split, first, result)
            done += 1
            if progress is not None:
                progress(done, total)
    return result


def check_splits(splits: Mapping[str, Sequence[Exam]], needed: Sequence[str] = SPLITS) -> CheckResult:
    """Checks for empty and unused splits, and the used ones for duplicate ids, patients in two and damaged texts; loads
    no view.

    Args:
        needed: splits that must have exams.
    """
    result = CheckResult()
    for name in needed:
        if not splits.get(name):
            result.errors.append(Problem("empty-split", "the split has no exams", f"split {name}"))
    for name, exams in splits.items():
        if name not in SPLITS:
            found = f"the split and its {len(exams)} exam{'s' * (len(exams) != 1)} are never used"
            hint = did_you_mean(name.lower(), SPLITS).strip()
            result.warnings.append(Problem("unused-split", found, f"split {name}", f"one of {', '.join(SPLITS)}", hint))
    split_of_id: dict[str, str] = {}
    split_of_patient: dict[str, str] = {}
    leaks = set()
    for split, exams in ((name, splits.get(name, ())) for name in SPLITS):
        result.errors.extend(_texts(exams))
        for exam in exams:
            place = f"exam {exam.id}"
            if exam.id in split_of_id:
                other = split_of_id[exam.id]
                where = f"twice in split {split}" if other == split else f"in splits {other} and {split}"
                result.errors.append(Problem("duplicate-id", f"the id occurs {where}", place))
            split_of_id.setdefault(exam.id, split)
            other = split_of_patient.setdefault(exam.patient, split)
            if other != split and (exam.patient, split) not in leaks:
                leaks.add((exam.patient, split))
                found = f"patient {exam.patient} is in splits {other} and {split}"
                result.errors.append(Problem("split-leak", found, place))
    return result


def _repeated_reports(splits: Mapping[str, Sequence[Exam]]) -> list[str]:
    """How many reports of val and test occur word for word in train: a model can copy them."""
    known = {exam.report for exam in splits.get("train", ())}
    counts = {name: sum(exam.report in known for exam in splits.get(name, ())) for name in SPLITS[1:]}
    return [
        f"{count} of {len(splits[name])} reports of split {name} occur word for word in split train"
        for name, count in counts.items()
        if count
    ]


def _texts(exams: Sequence[Exam]) -> Iterator[Problem]:
    """Texts with an unpaired surrogate: half of a character, or a file name that is not UTF-8. No file can hold one."""
    for exam in exams:
        texts = {"id": exam.id, "patient": exam.patient, "report": exam.report, "rewording": exam.rewording or ""}
        texts |= {f"view {number} (file name)": view.name for number, view in enumerate(exam.views, 1)}
        for what, text in texts.items():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                half = ascii(text[error.start : error.end])
                yield Problem(
                    "wrong-format",
                    f"its {what} has {half} at character {error.start + 1}, which is no character",
                    f"exam {exam.id}",
                    hint="Rename the file to UTF-8."
                    if "file name" in what
                    else "Delete it, or write the whole character.",
                )


def _check_views(exam: Exam, split: str, first: dict[bytes, tuple[str, str, str]], result: CheckResult) -> None:
    place = f"exam {exam.id}"
    if not exam.views:
        result.errors.append(Problem("broken-image", f"it has no view (split {split})", place))
    for view in exam.views:
        name = f"view {view.name} (split {split})"
        try:
            image = view.load()
        except (OSError, ValueError) as error:
            result.errors.append(Problem("broken-image", f"{name}: {error}", place))
            continue
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            found = f"{name} is {image.dtype} of shape {image.shape}"
            result.errors.append(Problem("broken-image", found, place, "uint8 of H x W or H x W x 3"))
            continue
        if is_blank(image):
            result.warnings.append(Problem("suspicious-image", f"{name} is blank: all pixels are equal", place))
            continue  # blank images are equal without being copies
        key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
        other, exam_id, view_name = first.setdefault(key, (split, exam.id, view.name))
        if other != split:
            found = f"{name} has the same pixels as view {view_name} of exam {exam_id} in {other}"
            result.warnings.append(Problem("suspicious-image", found, place))


def first_problems(errors: Sequence[UserError], place: object, most: int = 20) -> list[Problem]:
    """The problems of all errors at a place such as a file; after `most`, one problem that counts the others."""
    problems = [problem for error in errors for problem in error.problems]
    listed = [replace(problem, place=f"{place}, {problem.place}") for problem in problems[:most]]
    if rest := problems[most:]:
        listed.append(Problem(rest[0].code, f"{len(rest)} more problems", str(place)))
    return listed


def listing(problems: Sequence[object], most: int = 20) -> str:
    """One problem per line; after `most` lines, the number of the others."""
    lines = [f"  {problem}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"  ... and {len(problems) - most} more")
    return "\n".join(lines)
