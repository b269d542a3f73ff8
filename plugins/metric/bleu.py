"""BLEU-1 to BLEU-4 of a whole split, equal to the numbers that report-generation papers print."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import ngrams

ORDERS = (1, 2, 3, 4)
# The usual scorer adds these to hits and totals, so that an order without a hit gives a tiny score and not 0 / 0.
HITS_FLOOR, TOTAL_FLOOR = 1e-15, 1e-9


@lru_cache(maxsize=2048)  # the references of a split come again for every text-only floor
def _runs(words: tuple[str, ...]) -> Counter[tuple[str, ...]]:
    """How often each run of one to four words stands in a report."""
    return Counter(run for n in ORDERS for run in ngrams(words, n))


@register("metric", "bleu")
class Bleu:
    """Share of runs of 1 to 4 words that stand in the reference too; short reports are marked down.

    Clipped hits are summed over the split before they are divided (not a mean over reports),
    the geometric mean of orders 1 to n is taken, and with one reference a report the closest reference length is that
    reference's. 0 to 1.

    Source:
        Papineni et al. 2002, ACL, section 2.3.
    """

    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
    by_words = True
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `ValueError` for no pairs, or a reference without words."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        empty = sum(not pair.prediction_words for pair in pairs)
        _warn(empty, len(pairs), sums_S[: len(ORDERS)])
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of each report: clipped hits of order 1 to 4, runs of order 1 to 4, words, words of the reference."""
        if not pairs:
            raise ValueError("BLEU of no reports: the split is empty")
        rows = []
        for pair in pairs:
            if not pair.reference_words:
                raise ValueError(f"BLEU: the reference of exam {pair.exam_id} has no words")
            hits = [0] * len(ORDERS)
            reference = _runs(pair.reference_words)
            for ngram, count in _runs(pair.prediction_words).items():
                if ngram in reference:
                    hits[len(ngram) - 1] += min(count, reference[ngram])
            length = len(pair.prediction_words)
            rows.append((*hits, *(max(0, length - n + 1) for n in ORDERS), length, len(pair.reference_words)))
        return np.array(rows, dtype=np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The values of sums over exams, [..., 10]."""
        orders = len(ORDERS)
        hits, totals = sums[..., :orders], sums[..., orders : 2 * orders]
        written, expected = sums[..., -2], sums[..., -1]
        ratio = (written + HITS_FLOOR) / (expected + TOTAL_FLOOR)
        # 1 where reports are longer than their references; an exponent below -700 is 0 in double precision.
        brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
        products = np.cumprod((hits + HITS_FLOOR) / (totals + TOTAL_FLOOR), axis=-1)
        return {f"bleu_{n}": products[..., n - 1] ** (1 / n) * brevity for n in ORDERS}


def _warn(empty: int, reports: int, hits: np.ndarray) -> None:
    if empty:
        warnings.warn(
            f"BLEU: {empty} of {reports} predictions are empty; they count, and lower the score", stacklevel=3
        )
    for n in ORDERS:
        if not hits[n - 1]:
            runs = "word" if n == 1 else f"run of {n} words"
            warnings.warn(
                f"BLEU: not one {runs} of {reports} predictions stands in its reference, so bleu_{n} and above are "
                "almost 0. Early in training this is normal; else compare the two texts' language and segmentation",
                stacklevel=3,
            )
            break
