"""How much a confidence is worth: whether it is as often right as it says, and the risk of what it leaves out.

Shapes: N items, each with a confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 10  # of equal width, from 0 to 1


class Bin(NamedTuple):
    """Items of about the same confidence: their mean confidence, the share that is right, and their number."""

    confidence: float
    right: float
    items: int


def reliability(confidence: Sequence[float], right: Sequence[bool]) -> list[Bin]:
    """The bins that have items, from the least confidence to the highest."""
    confidence_N, right_N = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    bin_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    return [
        Bin(round(float(confidence_N[own].mean()), 6), round(float(right_N[own].mean()), 6), int(own.sum()))
        for own in (bin_N == each for each in range(BINS))
        if own.any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The mean difference of confidence and share that is right, weighted by the items of a bin; 0 is best.

    Source:
        Guo et al. 2017, arXiv 1706.04599, equation 3 (expected calibration error).
    """
    items = sum(each.items for each in bins)
    return sum(each.items * abs(each.confidence - each.right) for each in bins) / items


def risk_coverage(confidence: Sequence[float], risk: Sequence[float]) -> np.ndarray:
    """The mean risk of the 1, 2 ... N most confident items, [N]. Items of equal confidence share their mean risk, so
    that their order does not matter.

    Source:
        Geifman and El-Yaniv 2017, arXiv 1705.08500, section 2.
    """
    confidence_N, risk_N = np.asarray(confidence, dtype=np.float64), np.asarray(risk, dtype=np.float64)
    _, group_N = np.unique(-confidence_N, return_inverse=True)
    mean_of_group = np.bincount(group_N, weights=risk_N) / np.bincount(group_N)
    shared_N = np.sort(group_N, kind="stable")
    return np.cumsum(mean_of_group[shared_N]) / np.arange(1, len(risk_N) + 1)


def aurc(curve_N: np.ndarray) -> float:
    """The area under a risk-coverage curve: its mean over all coverages. A confidence without information gives the
    risk of all items.

    Source:
        Geifman, Uziel and El-Yaniv 2019, arXiv 1805.08206, equation 2.
    """
    return float(curve_N.mean())
