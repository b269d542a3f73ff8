"""Helpers of metrics that count n-grams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def ngrams(units: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """All n-grams of this length, from left to right."""
    return zip(*(units[start:] for start in range(length)))


def safe_divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole elementwise; 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
