"""Helpers of metrics that count n-grams or findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np
from scipy.sparse import csr_matrix


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
