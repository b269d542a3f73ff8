"""CIDEr-D: TF-IDF-weighted n-gram similarity, in which phrases of every report count little."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import Words, at_least, clipped, distinct, lengths, ngram_counter, safe_divide
from framework.scoring.pairs import require_references, warn_empty_predictions

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0  # difference in length at which the score falls to 61 % [words]
SCALE = 10.0


class _Corpus:
    """References, and the inverse document frequencies of their n-grams.

    Args:
        references: by exam.
    """

    def __init__(self, references: Sequence[Words]) -> None:
        self.references = tuple(references)
        self.texts, of_exam = distinct(references)
        self.place_of = {text: place for place, text in enumerate(self.texts)}
        self.counter = ngram_counter(tuple(self.texts), len(ORDERS))
        times_n = np.bincount(of_exam)
        self.unseen = math.log(len(references))  # idf of an n-gram in no reference: that of one in a single reference
        self.idf = [self.unseen - np.log(at_least(counts, 1).T @ times_n) for counts in self.counter.references]

    def squared_idf(self, order: int, columns: int) -> np.ndarray:
        """Of the n-grams of an order; those after the references' are in no reference."""
        squares = np.full(columns, self.unseen**2)
        squares[: len(self.idf[order])] = self.idf[order] ** 2
        return squares

    def similarities(self, predictions: Sequence[Words], references: Sequence[Words]) -> np.ndarray:
        """Mean over n of the cosine with clipped weights, times a Gaussian of the difference in length, [B]."""
        texts, prediction_of = distinct(predictions)
        if all(text in self.place_of for text in references):
            counts = self.counter.count(texts)
            reference_of = np.array([self.place_of[text] for text in references], dtype=np.int64)
            expected = self.counter.references
            expected_texts = self.texts
        else:  # a corpus of other references: what only these texts have is numbered for both together
            expected_texts, reference_of = distinct(references)
            both = self.counter.count([*texts, *expected_texts])
            counts, expected = [each[: len(texts)] for each in both], [each[len(texts) :] for each in both]
        total_B = np.zeros(len(references))
        for order, (written, reference) in enumerate(zip(counts, expected)):
            squares = self.squared_idf(order, max(written.shape[1], reference.shape[1]))
            norms = (
                np.sqrt(each.power(2) @ squares[: each.shape[1]])[of]
                for each, of in ((written, prediction_of), (reference, reference_of))
            )
            limits = reference[reference_of]
            dots_B = clipped(written[prediction_of], limits).multiply(limits).tocsr() @ squares[: limits.shape[1]]
            total_B += safe_divide(dots_B, math.prod(norms))
        bigrams_B, expected_B = _bigrams(texts)[prediction_of], _bigrams(expected_texts)[reference_of]
        return total_B * np.exp(-((bigrams_B - expected_B) ** 2) / (2 * SIGMA**2)) / len(ORDERS)


def _bigrams(texts: Sequence[Words]) -> np.ndarray:
    """The length of each text, [n]: the COCO scorer counts bigrams, not words."""
    return np.maximum(0, lengths(texts) - 1)


@register("metric", "cider")
class Cider:
    """CIDEr-D as in the COCO captions' scorer: cosine of TF-IDF vectors of 1- to 4-grams. 0 to 10.

    Document frequencies are those of the split's references, weights are clipped at the reference's, a Gaussian
    (sigma 6) penalizes differences in length, and the mean is multiplied by 10. N-grams of every reference count
    nothing. Scores depend on the whole split, so those of different splits, or of a part, are not comparable.

    Source:
        Vedantam, Zitnick and Parikh 2015, arXiv 1411.5726, CIDEr-D.
    """

    names = ("cider",)
    by_words = True
    higher_is_better = True

    def __init__(self) -> None:
        self._last: _Corpus | None = None  # other predictions are scored against the same references
        self._fitted: _Corpus | None = None

    def fit(self, references: Sequence[Words]) -> None:
        """Fixes the document frequencies to those of these reports instead of the scored ones.

        For rewards, which score a few reports at a time (Rennie et al. 2017, arXiv 1612.00563, section 5).
        """
        self._fitted = _Corpus(references)

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split` or `empty-report`."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        warn_empty_predictions("CIDEr", pairs, by_words=True)
        _warn_zero(pairs, self._corpus(pairs), sums_S[0])
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report: its similarity, and 1.

        Document frequencies are those of all `pairs`, so that the value of a resample is the mean of the scores that
        its exams have in the whole split.
        """
        require_references("CIDEr", pairs, by_words=True)
        similarity_B = self._corpus(pairs).similarities(
            [pair.prediction_words for pair in pairs], [pair.reference_words for pair in pairs]
        )
        return np.column_stack([similarity_B, np.ones(len(pairs))])

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """CIDEr from sums over exams, [..., 2]."""
        return {"cider": sums[..., 0] / sums[..., 1] * SCALE}

    def best_constants(self, texts: Sequence[str], words: Sequence[Words], pairs: Sequence[Pair]) -> dict[str, int]:
        """Index of the text that scores best as the prediction of every reference."""
        corpus = self._corpus(pairs)
        times_M = np.bincount([corpus.place_of[pair.reference_words] for pair in pairs]).astype(np.float64)
        bigrams_N, bigrams_M = _bigrams(words), _bigrams(corpus.texts)
        lengths_L, place_M = np.unique(bigrams_M, return_inverse=True)
        penalty_NL = np.exp(-((bigrams_N[:, None] - lengths_L) ** 2) / (2 * SIGMA**2))
        total_N = np.zeros(len(words))
        for order, (counts, expected) in enumerate(zip(corpus.counter.count(words), corpus.counter.references)):
            squares = corpus.squared_idf(order, counts.shape[1])
            known = squares[: expected.shape[1]]
            norm_N, norm_M = np.sqrt(counts.power(2) @ squares), np.sqrt(expected.power(2) @ known)
            by_length_ML = np.zeros((len(times_M), len(lengths_L)))
            by_length_ML[np.arange(len(times_M)), place_M] = safe_divide(times_M, norm_M)
            dots_NL = np.zeros((len(words), len(lengths_L)))
            for k in range(1, int(expected.data.max(initial=0)) + 1):
                weights = at_least(expected, k).multiply(expected).multiply(known)
                dots_NL += at_least(counts, k)[:, : len(known)] @ (weights.T @ by_length_ML)
            total_N += safe_divide((dots_NL * penalty_NL).sum(1), norm_N)
        return {"cider": int(total_N.argmax())}

    def _corpus(self, pairs: Sequence[Pair]) -> _Corpus:
        if self._fitted is not None:
            return self._fitted
        references = tuple(pair.reference_words for pair in pairs)
        if self._last is None or self._last.references != references:
            self._last = _Corpus(references)
        return self._last


def _warn_zero(pairs: Sequence[Pair], corpus: _Corpus, total: float) -> None:
    if len(pairs) == 1:
        warnings.warn(
            "CIDEr of a single report is 0 even for a perfect text, since no word is rare among one reference. "
            "Use BLEU or ROUGE-L, or score more reports",
            stacklevel=3,
        )
    elif len(corpus.texts) == 1:
        warnings.warn(
            f"CIDEr is 0 even for perfect texts here: all {len(pairs)} references are equal, so no word is rare. Use "
            "BLEU or ROUGE-L",
            stacklevel=3,
        )
    elif not total:
        warnings.warn(
            f"CIDEr is 0: no prediction of {len(pairs)} shares a rare word with its reference. Early in training this "
            "is normal; later, compare the language and segmentation of both texts",
            stacklevel=3,
        )
