"""Findings F1: agreement of the findings that report and reference state, whatever the wording."""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import count_matrix, distinct, safe_divide
from framework.scoring.pairs import require_pairs
from framework.text.findings.numbers import Size, agreeing
from framework.text.findings.reader import APART, Measure, Reading, attributes, explain, read_all

PART = "findings_f1/"  # and an attribute or an aspect
BLOCK = 4096  # pairs whose common findings are counted at a time

Counts = tuple[int, int, int]  # in both, in the prediction, in the reference


@register("metric", "findings_f1")
class FindingsF1:
    """Micro-averaged F1 of stated findings: lesions and their side, echo, margin, calcification, categories and others.

    A lexicon extracts (attribute, value) pairs from both texts, in English or Chinese. F1, precision and recall are
    over all pairs of the split; `findings_f1/<attribute>` is the F1 of one attribute that the references state. 0 to 1.
    Findings of several lesions of one report form one set.

    Aspects have an F1 of their own and do not enter the overall F1, so that it stays comparable: `findings_f1/size`
    (diameters, each within 20 % or 2 mm; masks such as _2DS_ by name), `clock`, `segment` (of the liver), `denial`
    (negated: a lesion, calcification, flow, enlarged nodes) and `side_of` (each finding of a lesion with the lesion's
    side: low if left and right are swapped between two lesions).

    On reports that the lexicon had never read, labelled by hand, precision and recall were 0.99 in usual wordings (40
    reports) and 0.95 and 0.94 in the habits of different hospitals (184 reports);
    tests/plugins/metric/findings_fresh.yaml has them. The authors of the lexicon wrote and labelled them, so real
    reports may be read less accurately. `describe metric/findings_f1 --read "TEXT"` prints how a text is read.

    Source:
        Sonoscribe.
    """

    names = ("findings_f1", "findings_precision", "findings_recall")
    by_words = False
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split`."""
        counts_EKA = self.per_exam_stats(pairs).reshape(len(pairs), 3, -1)
        _, predicted_EA, reference_EA = counts_EKA.swapaxes(0, 1)
        counted = len(attributes())
        _warn(pairs, int((~reference_EA[:, :counted].any(1)).sum()), int(predicted_EA[:, :counted].sum()))
        values = self.compute(counts_EKA.sum(0).reshape(-1))
        unstated = {
            f"{PART}{name}" for name, stated in zip(_columns(), np.any(reference_EA, axis=0).tolist()) if not stated
        }
        return {name: float(value) for name, value in values.items() if name not in unstated}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report: findings in both texts, in the prediction, in the reference, by attribute and aspect."""
        require_pairs("findings F1", pairs)
        texts, of = distinct([*(pair.prediction for pair in pairs), *(pair.reference for pair in pairs)])
        prediction_of, reference_of = np.split(of, 2)
        readings = _read_each(texts)
        columns: dict[Any, int] = {}
        stated = count_matrix((chain(own.findings, own.aspects) for own in readings), columns, grow=True)
        place = {name: number for number, name in enumerate(_columns())}
        # Which attribute each finding is of: a product with it counts findings by attribute.
        attribute_of = np.zeros((len(columns), len(place)))
        for (attribute, _), column in columns.items():
            attribute_of[column, place[attribute]] = 1
        counts_EKA = np.empty((len(pairs), 3, len(place)))
        by_attribute = stated @ attribute_of
        counts_EKA[:, 1], counts_EKA[:, 2] = by_attribute[prediction_of], by_attribute[reference_of]
        for start in range(0, len(pairs), BLOCK):
            block = slice(start, start + BLOCK)
            both = stated[prediction_of[block]].multiply(stated[reference_of[block]])
            counts_EKA[block, 0] = both.tocsr() @ attribute_of
        sizes = [own.sizes for own in readings]
        for counts_KA, one, other in zip(counts_EKA, prediction_of.tolist(), reference_of.tolist()):
            if sizes[one] or sizes[other]:
                for name, counts_K in zip(("size", "side_of"), _size_agreement(sizes[one], sizes[other])):
                    counts_KA[:, place[name]] += counts_K
        return counts_EKA.reshape(len(pairs), -1)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The values from sums over exams, [..., 3 times the attributes]; 0 for an attribute that is never stated."""
        counts = sums.reshape(*sums.shape[:-1], 3, -1)
        both, predicted, reference = np.moveaxis(counts[..., : len(attributes())].sum(-1), -1, 0)
        f1_of_each = safe_divide(2 * counts[..., 0, :], counts[..., 1, :] + counts[..., 2, :])
        return {
            "findings_f1": safe_divide(2 * both, predicted + reference),
            "findings_precision": safe_divide(both, predicted),
            "findings_recall": safe_divide(both, reference),
            **{f"{PART}{name}": f1_of_each[..., number] for number, name in enumerate(_columns())},
        }

    def best_constants(
        self, texts: Sequence[str], words: Sequence[tuple[str, ...]], pairs: Sequence[Pair]
    ) -> dict[str, int]:
        """Index of the text that scores best as the prediction of every reference, for each overall score."""
        references, place_of = distinct(pair.reference for pair in pairs)
        times_M = np.bincount(place_of).astype(np.float64)
        vocabulary: dict[Hashable, int] = {}
        stated = count_matrix((own.findings for own in _read_each(references)), vocabulary, grow=True).T @ times_M
        found = [own.findings for own in _read_each(texts)]
        both_N = count_matrix(found, vocabulary, grow=False) @ stated
        predicted_N = np.array([len(each) * len(pairs) for each in found], dtype=np.float64)
        values = {
            "findings_f1": safe_divide(2 * both_N, predicted_N + stated.sum()),
            "findings_precision": safe_divide(both_N, predicted_N),
            "findings_recall": both_N,
        }
        return {name: int(values_N.argmax()) for name, values_N in values.items()}

    @staticmethod
    def explain(text: str) -> list[tuple[str, str]]:
        """Each finding of a text as `attribute: value`, and the words that state it."""
        return explain(text)

    def never_stated(self, pairs: Sequence[Pair]) -> list[str]:
        """Attributes that references state and no prediction does, then such values of other attributes.

        Values that most references state come first.
        """
        predicted = {finding for pair in pairs for finding in read_all(pair.prediction).findings}
        reference = Counter(finding for pair in pairs for finding in read_all(pair.reference).findings)
        stated = {attribute for attribute, _ in predicted}
        missing = [finding for finding, _ in reference.most_common() if finding not in predicted]
        whole = dict.fromkeys(attribute for attribute, _ in missing if attribute not in stated)
        return [*sorted(whole), *(f"{name} {value}" for name, value in missing if name in stated)]


def _columns() -> tuple[str, ...]:
    """Attributes, which the overall values count, then aspects, which they do not."""
    return (*attributes(), *sorted(APART))


def _read_each(texts: Iterable[str]) -> list[Reading]:
    """What each text states. Readings are many objects without cycles: collecting garbage would take a third of it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return [read_all(text) for text in texts]
    finally:
        if collects:
            gc.enable()


@lru_cache(maxsize=16384)
def _size_agreement(predicted: frozenset[Measure], reference: frozenset[Measure]) -> tuple[Counts, Counts]:
    """Agreement of the measures of two reports, and of those whose side is known."""
    every = [{"": {size for _, size in measures}} for measures in (predicted, reference)]
    by_side = [
        {side: {size for of, size in measures if of == side} for side in ("left", "right")}
        for measures in (predicted, reference)
    ]
    return _agreement(*every), _agreement(*by_side)


def _agreement(predicted: dict[str, set[Size]], reference: dict[str, set[Size]]) -> Counts:
    """Number of measures that agree, of predicted ones, and of reference ones."""
    both = sum(agreeing(sizes, reference[side]) for side, sizes in predicted.items())
    return both, sum(map(len, predicted.values())), sum(map(len, reference.values()))


def _warn(pairs: Sequence[Pair], unread: int, predicted: int) -> None:
    reports = len(pairs)
    empty = sum(not pair.prediction.strip() for pair in pairs)
    if empty:
        warnings.warn(f"findings F1: {empty} of {reports} predictions are empty and state nothing", stacklevel=3)
    if unread == reports:
        warnings.warn(
            f"findings F1 means nothing here: the lexicon reads no finding in any of {reports} references. It covers "
            "English and Chinese ultrasound of breast, thyroid and liver (framework/text/findings/lexicon.yaml)",
            stacklevel=3,
        )
    elif unread * 10 > reports:
        warnings.warn(f"findings F1: the lexicon reads no finding in {unread} of {reports} references", stacklevel=3)
    if not predicted and unread < reports and empty < reports:
        warnings.warn(
            f"findings F1 is 0: the lexicon reads no finding in any of {reports} predictions. Early in training this "
            "is normal; later, compare the language of both texts",
            stacklevel=3,
        )
