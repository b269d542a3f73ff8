"""What a metric promises."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from framework.exam import Pair
from framework.testing.promise import Make, hold, made, promised
from framework.testing.tokenizer import REPORTS


def check_metric(make: Make, *, reports: Sequence[str] = REPORTS) -> None:
    """Holds a metric to its contract.

    Args:
        make: The class, or what makes one.
        reports: References: some in the language that the metric is for.

    Raises:
        BrokenPromise: the first promise that it does not keep.
    """
    metric = made(make)
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
    _equal(_values(made(make), mixed), middle, "a metric made anew gives the same values", "draw nothing at random")
    if not metric.by_words:
        wordless = [replace(pair, prediction_words=(), reference_words=()) for pair in mixed]
        fix = "read `prediction` and `reference`, or say by_words = True"
        _equal(_values(metric, wordless), middle, "by_words = False means that words are not looked at", fix)
    _values(metric, perfect[:1])


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


def _equal(found: dict[str, float], expected: dict[str, float], promise: str, fix: str) -> None:
    right = found.keys() == expected.keys() and all(
        math.isclose(found[name], expected[name], rel_tol=1e-6, abs_tol=1e-9) for name in found
    )
    hold(right, promise, found=found, expected=expected, fix=fix)
