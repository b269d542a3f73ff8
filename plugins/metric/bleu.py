"""BLEU-1 to BLEU-4 of a whole split, equal to the numbers that report-generation papers print."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from framework.exam import Pair
from framework.registry import register

ORDERS = (1, 2, 3, 4)
# The usual scorer adds these to hits and totals, so that an order without a hit gives a tiny score and not 0 / 0.
HITS_FLOOR, TOTAL_FLOOR = 1e-15, 1e-9


@lru_cache(maxsize=2048)  # the references of a split come again for every text-only floor
def _ngrams(words: tuple[str, ...]) -> Counter[tuple[str, ...]]:
    """How often each run of one to four words stands in a report."""
    return Counter(words[start : start + n] for n in ORDERS for start in range(len(words) - n + 1))


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
        if not pairs:
            raise ValueError("BLEU of no reports: the split is empty")
        hits, totals = [0, 0, 0, 0], [0, 0, 0, 0]
        written = expected = empty = 0
        for pair in pairs:
            if not pair.reference_words:
                raise ValueError(f"BLEU: the reference of exam {pair.exam_id} has no words")
            length = len(pair.prediction_words)
            written += length
            expected += len(pair.reference_words)
            empty += not length
            for n in ORDERS:
                totals[n - 1] += max(0, length - n + 1)
            reference = _ngrams(pair.reference_words)
            for ngram, count in _ngrams(pair.prediction_words).items():
                if ngram in reference:
                    hits[len(ngram) - 1] += min(count, reference[ngram])
        _warn(empty, len(pairs), hits)
        return self._scores(hits, totals, written, expected)

    def _scores(self, hits: list[int], totals: list[int], written: int, expected: int) -> dict[str, float]:
        ratio = (written + HITS_FLOOR) / (expected + TOTAL_FLOOR)
        # An exponent below -700 is 0 in double precision; math.exp gives that 0 without complaint.
        brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        scores, product = {}, 1.0
        for n in ORDERS:
            product *= (hits[n - 1] + HITS_FLOOR) / (totals[n - 1] + TOTAL_FLOOR)
            scores[f"bleu_{n}"] = product ** (1 / n) * brevity
        return scores


def _warn(empty: int, reports: int, hits: list[int]) -> None:
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
