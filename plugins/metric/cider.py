"""CIDEr: agreement on the words that tell one report from another, and little credit for what every report says."""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import ngrams

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0  # words of difference in length at which the score falls to 61 %
SCALE = 10.0

Ngram = tuple[str, ...]
Words = tuple[str, ...]


class _Vector(NamedTuple):
    """A report as the n-grams' weights, apart for each n."""

    weights: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    bigrams: int  # stands for the length: the COCO scorer counts bigrams, not words


class _Corpus(NamedTuple):
    """References, and the weight of each n-gram they hold: log of reports over reports with it."""

    references: tuple[Words, ...]
    rarity: dict[Ngram, float]
    unseen: float  # an n-gram of no reference weighs as one of a single reference
    vectors: dict[Words, _Vector]


def _runs(words: Words) -> Counter[Ngram]:
    return Counter(run for n in ORDERS for run in ngrams(words, n))


def _corpus(references: tuple[Words, ...]) -> _Corpus:
    seen: Counter[Ngram] = Counter()
    counted = {words: _runs(words) for words in set(references)}
    for words, times in Counter(references).items():
        for ngram in counted[words]:
            seen[ngram] += times
    unseen = math.log(len(references))
    rarity = {ngram: unseen - math.log(count) for ngram, count in seen.items()}
    vectors = {words: _vector(words, counts, rarity, unseen) for words, counts in counted.items()}
    return _Corpus(references, rarity, unseen, vectors)


def _vector(words: Words, counts: Counter[Ngram], rarity: dict[Ngram, float], unseen: float) -> _Vector:
    weights: tuple[dict[Ngram, float], ...] = tuple({} for _ in ORDERS)
    squares: defaultdict[int, float] = defaultdict(float)
    for ngram, count in counts.items():
        weight = count * rarity.get(ngram, unseen)
        weights[len(ngram) - 1][ngram] = weight
        squares[len(ngram)] += weight * weight
    return _Vector(weights, tuple(math.sqrt(squares[n]) for n in ORDERS), max(0, len(words) - 1))


def _similarity(prediction: _Vector, reference: _Vector) -> float:
    """Mean over n of the cosine, with clipped weights, times a Gaussian of the difference in length."""
    penalty = math.exp(-((prediction.bigrams - reference.bigrams) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for own, theirs, norm, their_norm in zip(*prediction[:1], *reference[:1], prediction.norms, reference.norms):
        if norm and their_norm:
            dot = sum(min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in own.items() if ngram in theirs)
            total += dot / (norm * their_norm)
    return total * penalty / len(ORDERS)


@register("metric", "cider")
class Cider:
    """Agreement on rare runs of 1 to 4 words; what stands in every reference counts nothing.

    In the form of the COCO captions' `cider` scorer: tf-idf over n = 1 to 4 with document
    frequencies of the split's own references, weights clipped at the reference's, a Gaussian penalty of the difference
    in length (sigma 6), times 10. 0 to 10; it depends on the whole split, so scores of different splits (or of a part
    of one) are not comparable.

    Source:
        Vedantam, Zitnick and Parikh 2015, arXiv 1411.5726, CIDEr-D.
    """

    names = ("cider",)
    by_words = True
    higher_is_better = True

    def __init__(self) -> None:
        self._last: _Corpus | None = None  # the same references come again with every other set of predictions
        self._fitted: _Corpus | None = None

    def fit(self, references: Sequence[Words]) -> None:
        """Takes document frequencies from these reports from now on, instead of from those that are scored.

        For a reward, which scores a few reports at a time (Rennie et al. 2017, arXiv 1612.00563, section 5).
        """
        self._fitted = _corpus(tuple(references))

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `ValueError` for no pairs, or a reference without words."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        _warn(pairs, self._corpus(pairs), sums_S[0])
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of each report: its similarity, and 1.

        N-grams weigh as in all of `pairs`, also where some of these rows are summed, so that the value of a resample is
        a mean of what the same exams score in the whole split.
        """
        if not pairs:
            raise ValueError("CIDEr of no reports: the split is empty")
        for pair in pairs:
            if not pair.reference_words:
                raise ValueError(f"CIDEr: the reference of exam {pair.exam_id} has no words")
        corpus = self._corpus(pairs)
        rows = []
        vectors: dict[Words, _Vector] = {}
        for pair in pairs:
            words = pair.prediction_words
            if words not in vectors:
                vectors[words] = corpus.vectors.get(words) or _vector(words, _runs(words), corpus.rarity, corpus.unseen)
            reference = corpus.vectors.get(pair.reference_words) or _vector(
                pair.reference_words, _runs(pair.reference_words), corpus.rarity, corpus.unseen
            )
            rows.append((_similarity(vectors[words], reference), 1))
        return np.array(rows, dtype=np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The value of sums over exams, [..., 2]: a mean."""
        return {"cider": sums[..., 0] / sums[..., 1] * SCALE}

    def _corpus(self, pairs: Sequence[Pair]) -> _Corpus:
        if self._fitted is not None:
            return self._fitted
        references = tuple(pair.reference_words for pair in pairs)
        if self._last is None or self._last.references != references:
            self._last = _corpus(references)
        return self._last


def _warn(pairs: Sequence[Pair], corpus: _Corpus, total: float) -> None:
    empty = sum(not pair.prediction_words for pair in pairs)
    if empty:
        warnings.warn(f"CIDEr: {empty} of {len(pairs)} predictions are empty; each counts as 0", stacklevel=3)
    if len(pairs) == 1:
        warnings.warn(
            "CIDEr of a single report is 0 even for a perfect text: it weighs words by how few references hold them. "
            "Read BLEU or ROUGE-L instead, or score more reports",
            stacklevel=3,
        )
    elif len(corpus.vectors) == 1:
        warnings.warn(
            f"CIDEr is 0 even for perfect texts here: all {len(pairs)} references are the same, so no word tells one "
            "report from another. Read BLEU or ROUGE-L instead",
            stacklevel=3,
        )
    elif not total:
        warnings.warn(
            f"CIDEr is 0: no prediction of {len(pairs)} shares a telling word with its reference. Early in training "
            "this is normal; else compare the two texts' language and segmentation",
            stacklevel=3,
        )
