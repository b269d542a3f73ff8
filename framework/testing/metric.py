"""What a metric promises.

It gives its values of pairs. It may offer a second way to them, by sums over exams, for grids, which ask for the values
of thousands of resamples of one split:

    per_exam_stats(pairs) -> float64 array [E exams, S sums], a row an exam, in the order of the pairs
    compute(sums) -> values by name, each an array [...], of an array [..., S]

so that `compute(per_exam_stats(pairs).sum(0))` is what the metric gives of `pairs`, and the sums of a resample that
holds an exam twice count its row twice. `compute` may give more names: parts that a call leaves out where no exam
has them.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from framework.exam import Pair
from framework.testing.promise import Make, hold, made, promised
from framework.testing.tokenizer import REPORTS


def check_metric(make: Make, *, reports: Sequence[str] = REPORTS, language: str = "en") -> None:
    """Holds a metric to its contract.

    Args:
        make: The class, or what makes one.
        reports: References: some in the language that the metric is for.
        language: What a metric that asks for it is told.

    Raises:
        BrokenPromise: the first promise that it does not keep.
    """
    metric = made(make, language=language)
    _declared(metric)
    perfect, empty = _pairs(reports, reports), _pairs([""] * len(reports), reports)
    mixed = _pairs([*reports[1:], ""], reports)
    best, least, middle = _values(metric, perfect), _values(metric, empty), _values(metric, mixed)
    for name in metric.names:
        better = best[name] >= least[name] if metric.higher_is_better else best[name] <= least[name]
        hold(
            better,
            "the references themselves score at least as well as empty reports",
            found=f"{name}: {best[name]:.4g} for the references, {least[name]:.4g} for empty reports",
            expected="higher" if metric.higher_is_better else "lower",
            fix="turn higher_is_better around, or the score",
        )
    shuffled = random.Random(3).sample(mixed, len(mixed))
    _equal(_values(metric, shuffled), middle, "the order of reports changes nothing", "sum or average over all pairs")
    _equal(_values(metric, mixed), middle, "a metric remembers nothing of other reports", "start anew in each call")
    _equal(
        _values(made(make, language=language), mixed),
        middle,
        "a metric made anew gives the same values",
        "draw nothing at random",
    )
    if not metric.by_words:
        wordless = [replace(pair, prediction_words=(), reference_words=()) for pair in mixed]
        fix = "read `prediction` and `reference`, or say by_words = True"
        _equal(_values(metric, wordless), middle, "by_words = False means that words are not looked at", fix)
    _values(metric, perfect[:1])
    if hasattr(metric, "per_exam_stats") or hasattr(metric, "compute"):
        for pairs in (perfect, empty, mixed):
            _by_sums(metric, pairs)


def _pairs(predictions: Sequence[str], references: Sequence[str]) -> list[Pair]:
    return [
        Pair(f"exam-{number}", prediction, reference, tuple(prediction.split()), tuple(reference.split()))
        for number, (prediction, reference) in enumerate(zip(predictions, references))
    ]


def _declared(metric: Any) -> None:
    names = getattr(metric, "names", None)
    right = isinstance(names, tuple) and names and all(isinstance(name, str) for name in names)
    hold(right, "`names` tells the values", found=names, expected="a tuple of texts", fix='write names = ("mine",)')
    for word in ("by_words", "higher_is_better"):
        value = getattr(metric, word, None)
        fix = f"write {word} = True or False in the class"
        hold(isinstance(value, bool), f"`{word}` says so or not", found=value, expected="True or False", fix=fix)


def _values(metric: Any, pairs: list[Pair]) -> dict[str, float]:
    promise = "a metric gives a number of any reports, empty ones included"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning is a metric's way to say that its value means little
        with promised(promise, expected="numbers", fix="let no length be divided by"):
            values = metric(list(pairs))
            broken = {name: value for name, value in values.items() if not math.isfinite(float(value))}
    hold(not broken, promise, found=broken, expected="finite numbers", fix="let no length be divided by")
    names = tuple(metric.names)
    strangers = [name for name in values if name not in names and name.split("/")[0] not in names]
    hold(
        not strangers and set(names) <= set(values),
        "a metric gives the values that `names` tells",
        found=list(values),
        expected=f"{list(names)}, and parts of them such as '{names[0]}/part'",
        fix="write the same names twice",
    )
    return values


def _by_sums(metric: Any, pairs: list[Pair]) -> None:
    """The second way to the values gives the same, and also of resamples."""
    promise, fix = "a metric that offers sums offers per_exam_stats and compute", "write both, or neither"
    here = [word for word in ("per_exam_stats", "compute") if hasattr(metric, word)]
    hold(len(here) == 2, promise, found=f"only {here[0]}", expected="both", fix=fix)
    sums_ES = _per_exam(metric, pairs)
    turned = "a row of per_exam_stats is that of its exam"
    right = np.allclose(_per_exam(metric, pairs[::-1])[::-1], sums_ES, rtol=1e-6, atol=1e-9)
    hold(
        right,
        turned,
        found="other rows of pairs in another order",
        expected="the same rows, turned around",
        fix="count each pair for itself",
    )
    whole = "sums over all exams give what the metric gives of them"
    values = _values(metric, pairs)
    found = {name: float(value) for name, value in _of_sums(metric, sums_ES.sum(0)).items() if name in values}
    _equal(found, values, whole, "make __call__ of per_exam_stats and compute")
    # As a resample may be that holds one exam over and over.
    alone_ES = len(pairs) * sums_ES
    many = _of_sums(metric, np.stack([alone_ES, sums_ES]))
    for number, row_S in enumerate(alone_ES):
        one = _of_sums(metric, row_S)
        same = {name: float(value[0, number]) for name, value in many.items()}
        _equal(same, {name: float(value) for name, value in one.items()}, "compute takes [..., S]", "index [..., s]")


def _per_exam(metric: Any, pairs: list[Pair]) -> np.ndarray:
    promise, expected = "per_exam_stats gives the sums of each exam", f"float64, {len(pairs)} rows, finite"
    fix = "return np.array(rows, dtype=np.float64), a row a pair"
    with promised(promise, expected=expected, fix=fix):
        sums_ES = metric.per_exam_stats(list(pairs))
        right = sums_ES.dtype == np.float64 and sums_ES.ndim == 2 and len(sums_ES) == len(pairs)
        found = f"{sums_ES.dtype}, {sums_ES.shape}"
        hold(right and np.isfinite(sums_ES).all(), promise, found=found, expected=expected, fix=fix)
    return sums_ES


def _of_sums(metric: Any, sums: np.ndarray) -> dict[str, np.ndarray]:
    promise, fix = "compute gives a finite value of any sums, without a warning", "let nothing be divided by 0"
    expected = f"each of shape {sums.shape[:-1]}"
    with promised(promise, expected=expected, fix=fix), warnings.catch_warnings():
        warnings.simplefilter("error")
        values = {name: np.asarray(value) for name, value in metric.compute(sums).items()}
    broken = {
        name: value for name, value in values.items() if value.shape != sums.shape[:-1] or not np.isfinite(value).all()
    }
    hold(not broken, promise, found=broken, expected=expected, fix=fix)
    return values


def _equal(found: dict[str, float], expected: dict[str, float], promise: str, fix: str) -> None:
    right = found.keys() == expected.keys() and all(
        math.isclose(found[name], expected[name], rel_tol=1e-6, abs_tol=1e-9) for name in found
    )
    hold(right, promise, found=found, expected=expected, fix=fix)
