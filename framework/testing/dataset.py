"""What a data set promises."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.data.check import SPLITS, check, check_splits, listing
from framework.exam import Exam
from framework.testing.promise import Make, hold, made, promised


@dataclass(frozen=True)
class _First:
    """The first exams of each split."""

    exams: dict[str, Sequence[Exam]]

    def splits(self) -> dict[str, Sequence[Exam]]:
        return self.exams

    @property
    def cache_key(self) -> str:
        return "first"


def check_dataset(make: Make, *, most: int = 20) -> None:
    """Holds a data set to its contract.

    Args:
        make: The class, or what makes one.
        most: Exams of each split whose views are loaded.

    Raises:
        BrokenPromise: the first promise that it does not keep.
    """
    source = made(make)
    expected = f"a dict of {', '.join(SPLITS)}"
    with promised("splits() lists the exams", expected=expected, fix="return a dict of sequences of Exam"):
        splits = {name: list(exams) for name, exams in source.splits().items()}
    hold(set(SPLITS) <= set(splits), "splits() lists the exams", found=list(splits), expected=expected, fix="add them")
    for name, exams in splits.items():
        for exam in exams:
            _exam(exam, name)
        _sequence(source.splits()[name], exams, name)
    _none(
        check_splits(splits).errors,
        "every exam stands once, and splits share no patient",
        "split by patient, with ids of their own",
    )
    first: dict[str, Sequence[Exam]] = {name: exams[:most] for name, exams in splits.items()}
    _none(
        check(_First(first)).errors,
        "every view loads as a grey or coloured picture",
        "give uint8 of H x W, or H x W x 3",
    )
    _again(make, source, splits)
    _views(first)


def _none(problems: Sequence[Any], promise: str, fix: str) -> None:
    hold(not problems, promise, found=f"\n{listing(problems, 5)}", expected="no problem", fix=fix)


def _exam(exam: Any, split: str) -> None:
    promise = "an exam is a framework.exam.Exam with id, patient, views and report"
    fields = {"id": str, "patient": str, "report": str, "views": tuple}
    wrong = [name for name, kind in fields.items() if not isinstance(getattr(exam, name, None), kind)]
    found = {name: getattr(exam, name, None) for name in wrong} or type(exam).__name__
    fix = "ids, patients and reports are texts, views a tuple"
    hold(isinstance(exam, Exam) and not wrong, promise, found=f"{found} in {split}", expected="Exam", fix=fix)
    hold(exam.report.strip(), promise, found=f"exam {exam.id} without report", expected="text", fix="leave it out")


def _sequence(exams: Any, listed: list[Exam], split: str) -> None:
    promise = f"the exams of {split} are a sequence"
    with promised(promise, expected="len() and [index]", fix="return a list or tuple of exams"):
        hold(
            len(exams) == len(listed) and (not listed or exams[-1].id == listed[-1].id),
            promise,
            found=f"len() is {len(exams)}",
            expected=f"{len(listed)}, the exams that iterating gives, in that order",
            fix="return a list or tuple of exams",
        )


def _again(make: Make, source: Any, splits: dict[str, list[Exam]]) -> None:
    other = made(make)
    fix = "sort what is listed from disk, and draw from a seed of its own"
    told = {name: [(exam.id, exam.patient, exam.report) for exam in exams] for name, exams in splits.items()}
    again = {name: [(e.id, e.patient, e.report) for e in exams] for name, exams in other.splits().items()}
    promise = "the same keys give the same exams, in the same order"
    different = next((name for name in told if told[name] != again.get(name)), None)
    hold(different is None, promise, found=f"other exams in {different}", expected="equal splits", fix=fix)
    key = source.cache_key
    promise = "cache_key is one text for one content"
    fix = "make it from settings, a version, and sizes and times of the files; no hash(), no time of day"
    hold(isinstance(key, str) and key, promise, found=key, expected="a text", fix=fix)
    hold(key == other.cache_key, promise, found=f"{key} and {other.cache_key}", expected="the same twice", fix=fix)


def _views(first: dict[str, Sequence[Exam]]) -> None:
    for exams in first.values():
        for exam in exams:
            for view in exam.views:
                image = view.load()
                promise = f"view {view.name} of exam {exam.id} loads the same twice"
                hold(np.array_equal(image, view.load()), promise, found="other pixels", expected="equal", fix="seed it")
                promise = "views pickle, since worker processes load them"
                fix = "hold paths and numbers in a frozen dataclass at the top of the module; no lambdas, no open files"
                with promised(promise, expected="a copy that loads the same", fix=fix):
                    copy = pickle.loads(pickle.dumps(view)).load()
                hold(np.array_equal(image, copy), promise, found="other pixels", expected="equal", fix=fix)
