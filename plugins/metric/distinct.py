"""Distinct-1 and distinct-2: diversity of the generated reports."""

from __future__ import annotations

from collections.abc import Sequence

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import ngrams
from framework.scoring.pairs import require_pairs


@register("metric", "distinct")
class Distinct:
    """Distinct words and bigrams divided by all generated words and bigrams of the split. 0 to 1.

    The value falls with the number of reports, so only equal splits compare. Reports are repetitive by nature:
    `distinct_1/references` and `distinct_2/references` give the values of the references. A model that generates one
    report for all exams falls far below them. Higher means more diverse, not more correct.

    No per-exam sums: a word in two exams counts once, so sums would not be exact.

    Source:
        Li et al. 2016, arXiv 1510.03055, section 5.4.
    """

    names = ("distinct_1", "distinct_2")
    by_words = True
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split`."""
        require_pairs("distinct", pairs)
        predictions, references = [pair.prediction_words for pair in pairs], [pair.reference_words for pair in pairs]
        values = {f"distinct_{length}": _distinct(predictions, length) for length in (1, 2)}
        return values | {f"distinct_{length}/references": _distinct(references, length) for length in (1, 2)}


def _distinct(reports: Sequence[Sequence[str]], length: int) -> float:
    found = [ngram for words in reports for ngram in ngrams(words, length)]
    return len(set(found)) / max(len(found), 1)
