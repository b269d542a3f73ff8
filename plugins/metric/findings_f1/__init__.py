"""Findings F1: whether a generated report states what its reference states, whatever the wording."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import share
from plugins.metric.findings_f1.numbers import Size, agreeing
from plugins.metric.findings_f1.reader import APART, Measure, attributes, read_all

PART = "findings_f1/"  # and an attribute or an aspect


@register("metric", "findings_f1")
class FindingsF1:
    """Agreement on what is stated: lesions and their side, echo, margin, calcification, categories and so on.

    A lexicon reads (attribute, value) pairs from both texts, in English or Chinese. F1, precision and recall are over
    all pairs of the split together (micro); `findings_f1/<attribute>` is F1 of one attribute, for those which the
    references state. 0 to 1. There, findings of several lesions of one report are one set.

    Aspects that the overall F1 does not count, so that it stays comparable, have an F1 of their own:
    `findings_f1/size` (diameters, each within 20 % or 2 mm; masks such as _2DS_ by name), `clock`, `segment` (of the
    liver), `denial` (what is said not to be there: a lesion, calcification, flow, enlarged nodes) and `side_of` (each
    finding of a lesion with the lesion's side: low where left and right are swapped between two lesions).

    How well it reads is stated in tests/plugins/metric/test_findings_f1.py, on 200 sentences labelled by hand. The
    lexicon was also tuned on them, so that other reports are read less well.

    Source:
        Sonoscribe.
    """

    names = ("findings_f1", "findings_precision", "findings_recall")
    by_words = False
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `ValueError` for no pairs."""
        counts_EKA = self.per_exam_stats(pairs).reshape(len(pairs), 3, -1)
        _, told_EA, true_EA = counts_EKA.swapaxes(0, 1)
        counted = len(attributes())
        _warn(pairs, int((~true_EA[:, :counted].any(1)).sum()), int(told_EA[:, :counted].sum()))
        values = self.compute(counts_EKA.sum(0).reshape(-1))
        unstated = {f"{PART}{name}" for name, stated in zip(_columns(), np.any(true_EA, axis=0).tolist()) if not stated}
        return {name: float(value) for name, value in values.items() if name not in unstated}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of each report: findings in both texts, told by the prediction, and true, by attribute and aspect."""
        if not pairs:
            raise ValueError("findings F1 of no reports: the split is empty")
        place = {name: number for number, name in enumerate(_columns())}
        counts_EKA = np.zeros((len(pairs), 3, len(place)))
        for counts_KA, pair in zip(counts_EKA, pairs):
            told, true = read_all(pair.prediction), read_all(pair.reference)
            for one, other in ((told.findings, true.findings), (told.aspects, true.aspects)):
                for counts_A, found in zip(counts_KA, (one & other, one, other)):
                    for attribute, _ in found:
                        counts_A[place[attribute]] += 1
            for name, measures in (("size", _sizes), ("side_of", _sizes_of_sides)):
                counts_KA[:, place[name]] += _agreement(measures(told.sizes), measures(true.sizes))
        return counts_EKA.reshape(len(pairs), -1)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The values of sums over exams, [..., 3 times the attributes]; of an attribute that none states, 0."""
        counts = sums.reshape(*sums.shape[:-1], 3, -1)
        both, told, true = np.moveaxis(counts[..., : len(attributes())].sum(-1), -1, 0)
        f1_of_each = share(2 * counts[..., 0, :], counts[..., 1, :] + counts[..., 2, :])
        return {
            "findings_f1": share(2 * both, told + true),
            "findings_precision": share(both, told),
            "findings_recall": share(both, true),
            **{f"{PART}{name}": f1_of_each[..., number] for number, name in enumerate(_columns())},
        }


def _columns() -> tuple[str, ...]:
    """Attributes, which the overall values count, and behind them aspects, which they do not."""
    return (*attributes(), *sorted(APART))


def _sizes(measures: frozenset[Measure]) -> dict[str, set[Size]]:
    return {"": {size for _, size in measures}}


def _sizes_of_sides(measures: frozenset[Measure]) -> dict[str, set[Size]]:
    return {side: {size for of, size in measures if of == side} for side in ("left", "right")}


def _agreement(told: dict[str, set[Size]], true: dict[str, set[Size]]) -> tuple[int, int, int]:
    """Measures that agree, told, and true."""
    both = sum(agreeing(sizes, true[side]) for side, sizes in told.items())
    return both, sum(map(len, told.values())), sum(map(len, true.values()))


def _warn(pairs: Sequence[Pair], unread: int, told: int) -> None:
    reports = len(pairs)
    empty = sum(not pair.prediction.strip() for pair in pairs)
    if empty:
        warnings.warn(f"findings F1: {empty} of {reports} predictions are empty and state nothing", stacklevel=3)
    if unread == reports:
        warnings.warn(
            f"findings F1 says nothing here: the lexicon reads no finding in any of {reports} references. It knows "
            "English and Chinese ultrasound of breast, thyroid and liver (plugins/metric/findings_f1/lexicon.yaml)",
            stacklevel=3,
        )
    elif unread * 10 > reports:
        warnings.warn(f"findings F1: the lexicon reads no finding in {unread} of {reports} references", stacklevel=3)
    if not told and unread < reports and empty < reports:
        warnings.warn(
            f"findings F1 is 0: the lexicon reads no finding in any of {reports} predictions. Early in training this "
            "is normal; else compare the two texts' language",
            stacklevel=3,
        )
