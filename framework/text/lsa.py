"""LSA: a space where reports about the same findings are close, for distillers and a loss.

Latent semantic analysis (Deerwester et al. 1990): TF-IDF of words, then a truncated singular value decomposition.
The map from word counts to the space is linear, so it also maps the *expected* counts of a decoder's soft output.

Shapes: n reports, W words, D dimensions.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, repeat

import numpy as np
from scipy import sparse

from framework.runtime.errors import UserError

log = logging.getLogger(__name__)
LSA_DIMENSIONS = 64  # default
NOISE = 1e-5  # directions with a smaller fraction of the largest singular value are rounding noise


def count_words(word_lists: Sequence[Sequence[str]], index: Mapping[str, int]) -> sparse.csr_matrix:
    """How often each word of `index` occurs in each report, float64 [n, W]; other words are left out."""
    total = sum(map(len, word_lists))
    columns = np.fromiter(map(index.get, chain.from_iterable(word_lists), repeat(-1)), np.int64, total)
    known = columns >= 0
    # The number of known words before each word; a report has those from its first word to that of the next.
    before = np.concatenate([[0], np.cumsum(known)])
    starts = before[np.cumsum([0, *map(len, word_lists)])]
    shape = (len(word_lists), len(index))
    counts = sparse.csr_matrix((np.ones(int(before[-1])), columns[known], starts), shape=shape)
    counts.sum_duplicates()
    return counts


def inverse_document_frequency(reports_with_word: np.ndarray, reports: int) -> np.ndarray:
    """Inverse document frequency of each word, float64 [W], in scikit-learn's smooth form."""
    idf: np.ndarray = np.log((1 + reports) / (1 + reports_with_word)) + 1
    return idf


def _distinct_rows(counts: sparse.csr_matrix) -> int:
    """How many reports differ in their words, whatever their order."""
    ends = counts.indptr
    rows = zip(ends[:-1].tolist(), ends[1:].tolist())
    return len({counts.indices[a:b].tobytes() + counts.data[a:b].tobytes() for a, b in rows})


class ReportSpace:
    """TF-IDF (raw counts, smooth idf) and truncated SVD over segmented words.

    Args:
        dimensions: maximum number of dimensions; fewer if the reports do not span as many.
        seed: of the randomized SVD. The same seed and reports give the same space.

    Attributes:
        words: the words of the training reports, sorted.
        vectors_WD: float32, what one occurrence of each word adds to a report's position.
    """

    def __init__(self, dimensions: int, seed: int) -> None:
        if dimensions < 1:
            raise UserError("out-of-range", f"found {dimensions} dimensions of a report space", expected="at least 1")
        self.dimensions = dimensions
        self.seed = seed
        self.words: list[str] = []
        self.vectors_WD = np.zeros((0, dimensions), dtype=np.float32)
        self._index: dict[str, int] = {}

    @classmethod
    def restore(cls, words: Sequence[str], vectors_WD: np.ndarray, seed: int) -> ReportSpace:
        """A fitted space from its `words` and `vectors_WD`."""
        space = cls(vectors_WD.shape[1], seed)
        space._set(list(words), vectors_WD)
        return space

    def _set(self, words: list[str], vectors_WD: np.ndarray) -> None:
        assert vectors_WD.shape == (len(words), self.dimensions), (vectors_WD.shape, len(words), self.dimensions)
        self.words = words
        self.vectors_WD = np.ascontiguousarray(vectors_WD, dtype=np.float32)
        self._index = {word: row for row, word in enumerate(words)}

    def fit(self, word_lists: Sequence[Sequence[str]]) -> ReportSpace:
        """Fits the space on training reports, each a list of words; may lower `dimensions`.

        Raises:
            UserError: the reports have no words.
        """
        from sklearn.decomposition import TruncatedSVD  # takes a second to import

        words = sorted(set(chain.from_iterable(word_lists)))
        if not words:
            raise UserError(
                "empty-report",
                f"{len(word_lists)} training reports have no words",
                hint="Check the reports and the tokenizer's segmentation.",
            )
        copies = Counter(map(tuple, word_lists))
        times = np.array(list(copies.values()), dtype=np.float64)
        counts = count_words(list(copies), {word: row for row, word in enumerate(words)})
        reports_with_word = (counts > 0).T @ times
        idf = inverse_document_frequency(reports_with_word, len(word_lists))
        weighted = counts @ sparse.diags(idf)
        length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        # Unit rows, so that long reports do not dominate the fit. `embed` normalizes in the end.
        # n copies weigh as much as one report that is sqrt(n) times as long: the products of the columns are equal.
        unit = sparse.diags(np.sqrt(times) / np.maximum(length, 1e-12)) @ weighted
        distinct = _distinct_rows(counts)
        kept = min(self.dimensions, len(words), distinct)
        with np.errstate(invalid="ignore"):  # explained variance, not used here, is 0 / 0 if all reports are equal
            svd = TruncatedSVD(n_components=kept, n_iter=7, random_state=self.seed).fit(unit)
        real = svd.singular_values_ > NOISE * svd.singular_values_[0]
        kept = int(real.sum())
        if kept < self.dimensions:
            log.warning(
                "the report space has %d dimensions, not %d: %d distinct reports of %d words allow no more",
                kept,
                self.dimensions,
                distinct,
                len(words),
            )
        self.dimensions = kept
        self._set(words, (svd.components_[real] * idf).T)
        return self

    def embed(self, word_lists: Sequence[Sequence[str]]) -> np.ndarray:
        """Positions of reports, float32 [n, D], each of length 1; zeros for a report without known words."""
        assert self.words, "fit the report space first"
        raw = count_words(word_lists, self._index) @ self.vectors_WD.astype(np.float64)
        length = np.linalg.norm(raw, axis=1, keepdims=True)
        return (raw / np.where(length > 0, length, 1)).astype(np.float32)

    def word_vectors(self, vocabulary: Sequence[str]) -> np.ndarray:
        """The linear map from counts over `vocabulary` to the space, float32 [W, D]; zeros for unknown words.

        If the vocabulary has all known words of a report, `counts @ word_vectors` has the direction of `embed`.
        """
        assert self.words, "fit the report space first"
        vectors = np.zeros((len(vocabulary), self.dimensions), dtype=np.float32)
        for row, word in enumerate(vocabulary):
            if word in self._index:
                vectors[row] = self.vectors_WD[self._index[word]]
        return vectors


def lsa_positions(word_lists: Sequence[Sequence[str]], seed: int) -> np.ndarray:
    """Positions of reports in a space of the default size that is fitted on them, float32 [n, D]."""
    return ReportSpace(LSA_DIMENSIONS, seed).fit(word_lists).embed(word_lists)
