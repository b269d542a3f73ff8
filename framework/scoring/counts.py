"""Runs of neighbouring words or characters, which many scores of texts count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def ngrams(units: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """All runs of this many units, from the left."""
    return zip(*(units[start:] for start in range(length)))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part over whole, number by number; 0 of nothing."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
