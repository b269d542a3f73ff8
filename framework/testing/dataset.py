"""The contract of a data set."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from framework.data.check import SPLITS, check, check_splits, listing
from framework.exam import Exam
from framework.testing.contract import Make, build_plugin, require, runs


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
    """Checks a data set against its contract.

    Args:
        make: The class, or a function that builds one.
        most: Exams of each split whose views are loaded.

    Raises:
        ContractError: the first rule that it breaks.
    """
    with tempfile.TemporaryDirectory() as cache_dir:
        _check(partial(build_plugin, make, cache_dir=cache_dir), most)


def _check(build: Callable[[], Any], most: int) -> None:
    source = build()
    expected = f"a dict of {', '.join(SPLITS)}"
    with runs("splits() returns train, val and test", expected=expected, fix="return a dict of sequences of Exam"):
        splits = {name: list(exams) for name, exams in source.splits().items()}
    require(
        set(SPLITS) <= set(splits),
        "splits() returns train, val and test",
        found=list(splits),
        expected=expected,
        fix="add the missing splits",
    )
    for name, exams in splits.items():
        for exam in exams:
            _exam(exam, name)
        _sequence(source.splits()[name], exams, name)
    errors = check_splits(splits).errors
    _none(errors, "exam ids are unique, and a patient appears in only one split", "split by patient, with unique ids")
    first: dict[str, Sequence[Exam]] = {name: exams[:most] for name, exams in splits.items()}
    errors = check(_First(first)).errors
    _none(errors, "every view loads as a grayscale or RGB image", "return uint8 of H x W or H x W x 3")
    _again(build, source, splits)
    _views(first)


def _none(problems: Sequence[Any], rule: str, fix: str) -> None:
    require(not problems, rule, found=f"\n{listing(problems, 5)}", expected="no problem", fix=fix)


def _exam(exam: Any, split: str) -> None:
    rule = "an exam is a framework.exam.Exam with id, patient, views and report"
    fields = {"id": str, "patient": str, "report": str, "views": tuple}
    wrong = [name for name, kind in fields.items() if not isinstance(getattr(exam, name, None), kind)]
    found = {name: getattr(exam, name, None) for name in wrong} or type(exam).__name__
    fix = "id, patient and report must be str, views a tuple"
    require(isinstance(exam, Exam) and not wrong, rule, found=f"{found} in {split}", expected="Exam", fix=fix)
    require(exam.report.strip(), rule, found=f"exam {exam.id} without report", expected="text", fix="leave it out")


def _sequence(exams: Any, listed: list[Exam], split: str) -> None:
    rule = f"the exams of {split} are a sequence"
    with runs(rule, expected="len() and [index]", fix="return a list or tuple of exams"):
        require(
            len(exams) == len(listed) and (not listed or exams[-1].id == listed[-1].id),
            rule,
            found=f"len() is {len(exams)}",
            expected=f"{len(listed)}, in the order of iteration",
            fix="return a list or tuple of exams",
        )


def _again(build: Callable[[], Any], source: Any, splits: dict[str, list[Exam]]) -> None:
    other = build()
    fix = "sort directory listings, and draw random numbers from a fixed seed"
    first = {name: [(exam.id, exam.patient, exam.report) for exam in exams] for name, exams in splits.items()}
    again = {name: [(e.id, e.patient, e.report) for e in exams] for name, exams in other.splits().items()}
    rule = "the same keys give the same exams in the same order"
    different = next((name for name in first if first[name] != again.get(name)), None)
    require(different is None, rule, found=f"other exams in {different}", expected="equal splits", fix=fix)
    key = source.cache_key
    rule = "cache_key identifies the content"
    fix = "build it from settings, a version, and sizes and times of the files; not from hash() or the clock"
    require(isinstance(key, str) and key, rule, found=key, expected="a text", fix=fix)
    require(key == other.cache_key, rule, found=f"{key} and {other.cache_key}", expected="the same twice", fix=fix)


def _views(first: dict[str, Sequence[Exam]]) -> None:
    for exams in first.values():
        for exam in exams:
            for view in exam.views:
                image = view.load()
                rule = f"view {view.name} of exam {exam.id} loads the same twice"
                require(
                    np.array_equal(image, view.load()),
                    rule,
                    found="other pixels",
                    expected="equal",
                    fix="use a fixed seed",
                )
                rule = "views can be pickled for worker processes"
                fix = "use a frozen dataclass of paths and numbers at module level, without lambdas and open files"
                with runs(rule, expected="a copy that loads the same", fix=fix):
                    copy = pickle.loads(pickle.dumps(view)).load()
                require(np.array_equal(image, copy), rule, found="other pixels", expected="equal", fix=fix)
