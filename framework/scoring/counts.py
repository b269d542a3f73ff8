"""Helpers of metrics that count n-grams or findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import TypeVar

import numpy as np
from scipy.sparse import csr_matrix

Words = tuple[str, ...]
Text = TypeVar("Text", bound=Hashable)


def ngrams(units: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """All n-grams of this length, from left to right."""
    return zip(*(units[start:] for start in range(length)))


def safe_divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole elementwise; 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def count_matrix(rows: Iterable[Iterable[Hashable]], vocabulary: dict[Hashable, int], *, grow: bool) -> csr_matrix:
    """How often each row has each item, float64 [rows, items].

    Args:
        vocabulary: item -> column.
        grow: adds unknown items to the vocabulary; else they are not counted.
    """
    data, columns, ends = [], [], [0]
    for row in rows:
        for item, count in Counter(row).items():
            if grow:
                vocabulary.setdefault(item, len(vocabulary))
            if item in vocabulary:
                data.append(float(count))
                columns.append(vocabulary[item])
        ends.append(len(data))
    return csr_matrix((data, columns, ends), shape=(len(ends) - 1, len(vocabulary)))


def at_least(counts: csr_matrix, times: int) -> csr_matrix:
    """1 where a count is at least `times`. Their products add up to minima: min(a, b) = sum_k [a >= k] [b >= k]."""
    reached = counts.copy()
    reached.data = (counts.data >= times).astype(np.float64)
    reached.eliminate_zeros()
    return reached


def lengths(texts: Iterable[Words]) -> np.ndarray:
    """The number of words of each text, float64 [n]."""
    return np.array([len(text) for text in texts], dtype=np.float64)


def distinct(texts: Iterable[Text]) -> tuple[list[Text], np.ndarray]:
    """The distinct texts, and the place among them of each text."""
    places: dict[Text, int] = {}
    place_of = [places.setdefault(text, len(places)) for text in texts]
    return list(places), np.array(place_of, dtype=np.int64)


class NgramCounter:
    """Counts the n-grams of texts in arrays: a table of Python's tuples would take most of the time of a score.

    Shapes: n texts, R references, G_o n-grams of order o in the references, U of which only the counted texts have.

    Args:
        references: distinct texts, whose n-grams have the first columns.
        orders: the longest n-grams, in words.
    """

    def __init__(self, references: Sequence[Words], orders: int) -> None:
        self.orders = orders
        self.column_of: dict[str, int] = {}
        self.keys: list[np.ndarray] = []  # of the n-grams of orders 2 and more, sorted: the column is the place
        for text in references:
            for word in text:
                self.column_of.setdefault(word, len(self.column_of))
        self.references = self.count(references)  # fills `keys`

    def count(self, texts: Sequence[Words]) -> list[csr_matrix]:
        """Counts of each order, float64 [n, G_o + U]."""
        unseen: dict[str, int] = {}
        known = self.column_of
        words = np.fromiter(
            (
                known[word] if word in known else unseen.setdefault(word, len(known) + len(unseen))
                for word in chain.from_iterable(texts)
            ),
            dtype=np.int64,
            count=sum(map(len, texts)),
        )
        text_of = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        start, columns, size = np.arange(len(words)), words, len(known) + len(unseen)
        counted = [_count(text_of, columns, (len(texts), size))]
        for order in range(2, self.orders + 1):
            # An n-gram is its first n - 1 words, numbered by the order before, and its last one.
            inside = start + order - 1 < len(words)
            start, columns = start[inside], columns[inside]
            inside = text_of[start] == text_of[start + order - 1]
            start, columns = start[inside], columns[inside]
            keys, columns = np.unique(columns << 32 | words[start + order - 1], return_inverse=True)
            if len(self.keys) < order - 1:
                self.keys.append(keys)
            columns, size = _numbered(keys, self.keys[order - 2])[columns], len(self.keys[order - 2])
            counted.append(_count(text_of[start], columns, (len(texts), max(size, int(columns.max(initial=-1)) + 1))))
        return counted


def _numbered(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each key among the known ones; the others get the numbers after them."""
    places = np.searchsorted(known, keys)
    found = places < len(known)
    found[found] = known[places[found]] == keys[found]
    places[~found] = len(known) + np.arange(np.count_nonzero(~found))
    return places


def _count(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    """How often each pair of row and column occurs, float64."""
    cells, counts = np.unique(rows * shape[1] + columns, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(np.bincount(cells // shape[1], minlength=shape[0]))])
    return csr_matrix((counts.astype(np.float64), cells % shape[1], ends), shape=shape)


@lru_cache(maxsize=4)  # words and characters; baselines and several metrics score against the same references
def ngram_counter(references: tuple[Words, ...], orders: int) -> NgramCounter:
    """The counter of distinct references."""
    return NgramCounter(references, orders)


def clipped(counts: csr_matrix, limits: csr_matrix) -> csr_matrix:
    """The elementwise minimum of two matrices of counts, of which the second may lack the last columns."""
    return counts[:, : limits.shape[1]].minimum(limits)
