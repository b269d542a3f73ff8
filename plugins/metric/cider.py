"""CIDEr-D: TF-IDF-weighted n-gram similarity, in which phrases of every report count little."""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import at_least, count_matrix, ngrams, safe_divide
from framework.scoring.pairs import require_references, warn_empty_predictions

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0  # difference in length at which the score falls to 61 % [words]
SCALE = 10.0

Ngram = tuple[str, ...]
Words = tuple[str, ...]


class _Vector(NamedTuple):
    """TF-IDF weights of a report's n-grams, by n."""

    weights: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    bigrams: int  # the length: the COCO scorer counts bigrams, not words


class _Corpus(NamedTuple):
    """References and the inverse document frequency of their n-grams."""

    references: tuple[Words, ...]
    idf: dict[Ngram, float]
    unseen: float  # idf of an n-gram in no reference: that of one in a single reference
    vectors: dict[Words, _Vector]


def _ngrams(words: Words) -> Counter[Ngram]:
    return Counter(ngram for n in ORDERS for ngram in ngrams(words, n))


def _corpus(references: tuple[Words, ...]) -> _Corpus:
    documents: Counter[Ngram] = Counter()
    counts_of = {words: _ngrams(words) for words in set(references)}
    for words, times in Counter(references).items():
        for ngram in counts_of[words]:
            documents[ngram] += times
    unseen = math.log(len(references))
    idf = {ngram: unseen - math.log(count) for ngram, count in documents.items()}
    vectors = {words: _vector(words, counts, idf, unseen) for words, counts in counts_of.items()}
    return _Corpus(references, idf, unseen, vectors)


def _vector(words: Words, counts: Counter[Ngram], idf: dict[Ngram, float], unseen: float) -> _Vector:
    weights: tuple[dict[Ngram, float], ...] = tuple({} for _ in ORDERS)
    squares: defaultdict[int, float] = defaultdict(float)
    for ngram, count in counts.items():
        weight = count * idf.get(ngram, unseen)
        weights[len(ngram) - 1][ngram] = weight
        squares[len(ngram)] += weight * weight
    return _Vector(weights, tuple(math.sqrt(squares[n]) for n in ORDERS), max(0, len(words) - 1))


def _similarity(prediction: _Vector, reference: _Vector) -> float:
    """Mean over n of the cosine with clipped weights, times a Gaussian of the difference in length."""
    penalty = math.exp(-((prediction.bigrams - reference.bigrams) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for own, theirs, norm, their_norm in zip(*prediction[:1], *reference[:1], prediction.norms, reference.norms):
        if norm and their_norm:
            dot = sum(min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in own.items() if ngram in theirs)
            total += dot / (norm * their_norm)
    return total * penalty / len(ORDERS)


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
        self._fitted = _corpus(tuple(references))

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
        corpus = self._corpus(pairs)
        rows = []
        vectors: dict[Words, _Vector] = {}
        for pair in pairs:
            words = pair.prediction_words
            if words not in vectors:
                vectors[words] = corpus.vectors.get(words) or _vector(words, _ngrams(words), corpus.idf, corpus.unseen)
            reference = corpus.vectors.get(pair.reference_words) or _vector(
                pair.reference_words, _ngrams(pair.reference_words), corpus.idf, corpus.unseen
            )
            rows.append((_similarity(vectors[words], reference), 1))
        return np.array(rows, dtype=np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """CIDEr from sums over exams, [..., 2]."""
        return {"cider": sums[..., 0] / sums[..., 1] * SCALE}

    def best_constants(self, texts: Sequence[str], words: Sequence[Words], pairs: Sequence[Pair]) -> dict[str, int]:
        """Index of the text that scores best as the prediction of every reference."""
        corpus = self._corpus(pairs)
        references = Counter(pair.reference_words for pair in pairs)
        times_M = np.array(list(references.values()), dtype=np.float64)
        bigrams_N, bigrams_M = (np.array([max(0, len(each) - 1) for each in some]) for some in (words, references))
        lengths_L, place_M = np.unique(bigrams_M, return_inverse=True)
        penalty_NL = np.exp(-((bigrams_N[:, None] - lengths_L) ** 2) / (2 * SIGMA**2))
        total_N = np.zeros(len(words))
        for n in ORDERS:
            vocabulary: dict[Hashable, int] = {}
            expected = count_matrix((ngrams(each, n) for each in references), vocabulary, grow=True)
            counts = count_matrix((ngrams(each, n) for each in words), vocabulary, grow=True)
            expected.resize(expected.shape[0], len(vocabulary))
            idf_G = np.array([corpus.idf.get(ngram, corpus.unseen) for ngram in vocabulary])  # type: ignore[call-overload]
            norm_N, norm_M = (np.sqrt(each.power(2) @ idf_G**2) for each in (counts, expected))
            by_length_ML = np.zeros((len(times_M), len(lengths_L)))
            by_length_ML[np.arange(len(times_M)), place_M] = safe_divide(times_M, norm_M)
            dots_NL = np.zeros((len(words), len(lengths_L)))
            for k in range(1, int(expected.data.max(initial=0)) + 1):
                weights = at_least(expected, k).multiply(expected).multiply(idf_G**2)
                dots_NL += at_least(counts, k) @ (weights.T @ by_length_ML)
            total_N += safe_divide((dots_NL * penalty_NL).sum(1), norm_N)
        return {"cider": int(total_N.argmax())}

    def _corpus(self, pairs: Sequence[Pair]) -> _Corpus:
        if self._fitted is not None:
            return self._fitted
        references = tuple(pair.reference_words for pair in pairs)
        if self._last is None or self._last.references != references:
            self._last = _corpus(references)
        return self._last


def _warn_zero(pairs: Sequence[Pair], corpus: _Corpus, total: float) -> None:
    if len(pairs) == 1:
        warnings.warn(
            "CIDEr of a single report is 0 even for a perfect text, since no word is rare among one reference. "
            "Use BLEU or ROUGE-L, or score more reports",
            stacklevel=3,
        )
    elif len(corpus.vectors) == 1:
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
