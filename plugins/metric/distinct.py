"""Distinct-1 and distinct-2: whether reports differ, or one report is written for all."""

from __future__ import annotations

from collections.abc import Sequence

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import ngrams


@register("metric", "distinct")
class Distinct:
    """Different words, and different pairs of neighbouring words, over all words and pairs that are generated.

    Counted over the whole split, and the smaller the more reports there are, so that only equal splits compare. Reports
    repeat by nature: beside each value stands that of the references, as `distinct_1/references`. A model that writes
    one report for all falls far below it. Higher is more varied, not more right. 0 to 1.

    No sums over exams: a word that two exams share counts once, so that sums would not be exact.

    Source:
        Li et al. 2016, arXiv 1510.03055, section 5.4.
    """

    names = ("distinct_1", "distinct_2")
    by_words = True
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `ValueError` for no pairs."""
        if not pairs:
            raise ValueError("distinct n-grams of no reports: the split is empty")
        told, true = [pair.prediction_words for pair in pairs], [pair.reference_words for pair in pairs]
        values = {f"distinct_{length}": _distinct(told, length) for length in (1, 2)}
        return values | {f"distinct_{length}/references": _distinct(true, length) for length in (1, 2)}


def _distinct(reports: Sequence[Sequence[str]], length: int) -> float:
    """Different runs of this many words over all of them; 0 where there are none."""
    runs = [run for words in reports for run in ngrams(words, length)]
    return len(set(runs)) / max(len(runs), 1)
