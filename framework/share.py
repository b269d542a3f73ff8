"""The share of a part in its whole, where the whole may be nothing."""

from __future__ import annotations

import numpy as np


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part over whole, number by number; 0 of nothing."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
