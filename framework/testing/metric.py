"""The contract of a metric.

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
from framework.testing.contract import Make, build_plugin, require, runs
from framework.testing.tokenizer import REPORTS


def check_metric(make: Make, *, reports: Sequence[str] = REPORTS, language: str = "en") -> None:
    """Checks a metric against its contract.

    Args:
        make: The class, or a function that builds one.
        reports: References: some in the language that the metric is for.
        language: The run-time value `language`.

    Raises:
        ContractError: the first rule that it breaks.
    """
    metric = build_plugin(make, language=language)
    _declared(metric)
    perfect, empty = _pairs(reports, reports), _pairs([""] * len(reports), reports)
    mixed = _pairs([*reports[1:], ""], reports)
    best, least, middle = _values(metric, perfect), _values(metric, empty), _values(metric, mixed)
    for name in metric.names:
        better = best[name] >= least[name] if metric.higher_is_better else best[name] <= least[name]
        require(
            better,
            "the references score at least as well as empty reports",
            found=f"{name}: {best[name]:.4g} for the references, {least[name]:.4g} for empty reports",
            expected="higher" if metric.higher_is_better else "lower",
            fix="invert higher_is_better, or the score",
        )
    shuffled = random.Random(3).sample(mixed, len(mixed))
    _equal(_values(metric, shuffled), middle, "the order of reports has no effect", "sum or average over all pairs")
    _equal(_values(metric, mixed), middle, "a call does not depend on earlier calls", "store no state between calls")
    _equal(
        _values(build_plugin(make, language=language), mixed),
        middle,
        "a new instance gives the same values",
        "use no random numbers",
    )
    if not metric.by_words:
        wordless = [replace(pair, prediction_words=(), reference_words=()) for pair in mixed]
        fix = "read `prediction` and `reference`, or set by_words = True"
        _equal(_values(metric, wordless), middle, "by_words = False means that words are not read", fix)
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
    require(right, "`names` lists the values", found=names, expected="a tuple of texts", fix='write names = ("mine",)')
    for word in ("by_words", "higher_is_better"):
        value = getattr(metric, word, None)
        fix = f"set {word} = True or False in the class"
        require(isinstance(value, bool), f"`{word}` is set", found=value, expected="True or False", fix=fix)


def _values(metric: Any, pairs: list[Pair]) -> dict[str, float]:
    rule = "a metric returns numbers for any reports, including empty ones"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metrics warn of values that mean little
        with runs(rule, expected="numbers", fix="do not divide by a length of 0"):
            values = metric(list(pairs))
            broken = {name: value for name, value in values.items() if not math.isfinite(float(value))}
    require(not broken, rule, found=broken, expected="finite numbers", fix="do not divide by a length of 0")
    names = tuple(metric.names)
    strangers = [name for name in values if name not in names and name.split("/")[0] not in names]
    require(
        not strangers and set(names) <= set(values),
        "a metric returns the values in `names`",
        found=list(values),
        expected=f"{list(names)}, and parts of them such as '{names[0]}/part'",
        fix="use the same names in both",
    )
    return values


def _by_sums(metric: Any, pairs: list[Pair]) -> None:
    """Values from sums equal those of the metric, also for resamples."""
    rule, fix = "per_exam_stats and compute come together", "implement both or neither"
    here = [word for word in ("per_exam_stats", "compute") if hasattr(metric, word)]
    require(len(here) == 2, rule, found=f"only {here[0]}", expected="both", fix=fix)
    sums_ES = _per_exam(metric, pairs)
    turned = "a row of per_exam_stats depends only on its exam"
    right = np.allclose(_per_exam(metric, pairs[::-1])[::-1], sums_ES, rtol=1e-6, atol=1e-9)
    require(
        right,
        turned,
        found="other rows for reversed pairs",
        expected="the same rows, reversed",
        fix="compute each row from its pair",
    )
    whole = "compute of the summed rows equals the metric"
    values = _values(metric, pairs)
    found = {name: float(value) for name, value in _of_sums(metric, sums_ES.sum(0)).items() if name in values}
    _equal(found, values, whole, "implement __call__ with per_exam_stats and compute")
    # A resample may contain one exam many times.
    alone_ES = len(pairs) * sums_ES
    many = _of_sums(metric, np.stack([alone_ES, sums_ES]))
    for number, row_S in enumerate(alone_ES):
        one = _of_sums(metric, row_S)
        same = {name: float(value[0, number]) for name, value in many.items()}
        _equal(
            same, {name: float(value) for name, value in one.items()}, "compute accepts [..., S]", "index with [..., s]"
        )


def _per_exam(metric: Any, pairs: list[Pair]) -> np.ndarray:
    rule, expected = "per_exam_stats returns a row per exam", f"float64, {len(pairs)} rows, finite"
    fix = "return np.array(rows, dtype=np.float64), one row per pair"
    with runs(rule, expected=expected, fix=fix):
        sums_ES = metric.per_exam_stats(list(pairs))
        right = sums_ES.dtype == np.float64 and sums_ES.ndim == 2 and len(sums_ES) == len(pairs)
        found = f"{sums_ES.dtype}, {sums_ES.shape}"
        require(right and np.isfinite(sums_ES).all(), rule, found=found, expected=expected, fix=fix)
    return sums_ES


def _of_sums(metric: Any, sums: np.ndarray) -> dict[str, np.ndarray]:
    rule, fix = "compute returns finite values without warnings", "do not divide by 0"
    expected = f"each of shape {sums.shape[:-1]}"
    with runs(rule, expected=expected, fix=fix), warnings.catch_warnings():
        warnings.simplefilter("error")
        values = {name: np.asarray(value) for name, value in metric.compute(sums).items()}
    broken = {
        name: value for name, value in values.items() if value.shape != sums.shape[:-1] or not np.isfinite(value).all()
    }
    require(not broken, rule, found=broken, expected=expected, fix=fix)
    return values


def _equal(found: dict[str, float], expected: dict[str, float], rule: str, fix: str) -> None:
    right = found.keys() == expected.keys() and all(
        math.isclose(found[name], expected[name], rel_tol=1e-6, abs_tol=1e-9) for name in found
    )
    require(right, rule, found=found, expected=expected, fix=fix)
