"""Corpus BLEU-1 to BLEU-4, equal to the COCO scorer that report-generation papers use."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import at_least, clipped, distinct, lengths, ngram_counter
from framework.scoring.pairs import require_references, warn_empty_predictions

ORDERS = (1, 2, 3, 4)
# The COCO scorer adds these to hits and totals, so that an order without a hit gives a tiny score, not 0 / 0.
HITS_EPS, TOTAL_EPS = 1e-15, 1e-9


@register("metric", "bleu")
class Bleu:
    """Geometric mean of the n-gram precisions of orders 1 to n, times a brevity penalty. 0 to 1.

    Clipped hits are summed over the split before division (corpus BLEU, not a mean over reports). Each report has one
    reference, whose length is the closest reference length.

    Source:
        Papineni et al. 2002, ACL, section 2.3.
    """

    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
    by_words = True
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split` or `empty-report`."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        warn_empty_predictions("BLEU", pairs, by_words=True)
        _warn_no_hits(len(pairs), sums_S[: len(ORDERS)])
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report: clipped hits of order 1 to 4, n-grams of order 1 to 4, words, words of the reference."""
        require_references("BLEU", pairs, by_words=True)
        predictions, prediction_of = distinct(pair.prediction_words for pair in pairs)
        references, reference_of = distinct(pair.reference_words for pair in pairs)
        counter = ngram_counter(tuple(references), len(ORDERS))
        hits = [
            np.asarray(clipped(written[prediction_of], expected[reference_of]).sum(1)).ravel()
            for written, expected in zip(counter.count(predictions), counter.references)
        ]
        lengths_B, expected_B = lengths(predictions)[prediction_of], lengths(references)[reference_of]
        totals = [np.maximum(0, lengths_B - n + 1) for n in ORDERS]
        return np.column_stack([*hits, *totals, lengths_B, expected_B])

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """BLEU-1 to BLEU-4 from sums over exams, [..., 10]."""
        orders = len(ORDERS)
        hits, totals = sums[..., :orders], sums[..., orders : 2 * orders]
        written, expected = sums[..., -2], sums[..., -1]
        ratio = (written + HITS_EPS) / (expected + TOTAL_EPS)
        # 1 if reports are longer than their references; an exponent below -700 is 0 in double precision.
        brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
        products = np.cumprod((hits + HITS_EPS) / (totals + TOTAL_EPS), axis=-1)
        return {f"bleu_{n}": products[..., n - 1] ** (1 / n) * brevity for n in ORDERS}

    def best_constants(
        self, texts: Sequence[str], words: Sequence[tuple[str, ...]], pairs: Sequence[Pair]
    ) -> dict[str, int]:
        """Index of the text that scores best as the prediction of every reference, for each score."""
        references, place_of = distinct(pair.reference_words for pair in pairs)
        times_M = np.bincount(place_of).astype(np.float64)
        lengths_N, lengths_M = lengths(words), lengths(references)
        counter = ngram_counter(tuple(references), len(ORDERS))
        sums_NS = np.zeros((len(words), 2 * len(ORDERS) + 2))
        for n, counts, expected in zip(ORDERS, counter.count(words), counter.references):
            known = counts[:, : expected.shape[1]]
            for k in range(1, int(expected.data.max(initial=0)) + 1):
                sums_NS[:, n - 1] += at_least(known, k) @ (at_least(expected, k).T @ times_M)
            sums_NS[:, len(ORDERS) + n - 1] = np.maximum(0, lengths_N - n + 1) * times_M.sum()
        sums_NS[:, -2] = lengths_N * times_M.sum()
        sums_NS[:, -1] = lengths_M @ times_M
        return {name: int(values_N.argmax()) for name, values_N in self.compute(sums_NS).items()}


def _warn_no_hits(reports: int, hits: np.ndarray) -> None:
    for n in ORDERS:
        if not hits[n - 1]:
            warnings.warn(
                f"BLEU: no {n}-gram of {reports} predictions is in its reference, so bleu_{n} and above are almost 0. "
                "Early in training this is normal; later, compare the language and segmentation of both texts",
                stacklevel=3,
            )
            break
