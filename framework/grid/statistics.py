"""Statistics of a result table: spread over seeds, bootstrapped differences, Holm's correction.

Shapes: E exams, R resamples of them, K differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from framework.grid.results import Spread
from framework.scoring.bootstrap import draws, percentile_interval

RESAMPLES = 10_000
# Differences up to this are rounding errors of equal scores that were summed in another order.
EPSILON = 1e-12


@dataclass(frozen=True)
class Difference:
    """A difference, with its bootstrap interval and p value."""

    value: float  # on the original exams
    low: float  # 95 % interval
    high: float
    p: float  # two-sided


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation (n - 1); None without values."""
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for multiple comparisons (family-wise error rate), in the given order.

    The smallest of m p values is multiplied by m, the next by m - 1 and so on; the results are monotonic and at most 1.

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def bootstrap_differences(
    differences: Callable[[np.ndarray], np.ndarray], exams: int, *, seed: int, bootstrap_samples: int = RESAMPLES
) -> list[Difference]:
    """Paired bootstrap over exams, drawn with replacement.

    Both sides of a difference are computed on the same resample, which makes the comparison paired. The interval
    reaches from the 2.5th to the 97.5th percentile of the resampled differences. p is twice the smaller fraction of
    resamples on either side of 0, where those at 0 count on both sides and the original exams count as one resample, so
    that p is never 0:

        p = min(1, 2 (1 + min(#{d <= 0}, #{d >= 0})) / (1 + R))

    Args:
        differences: returns [K, R] from the counts of each exam in each resample, [R, E]; called with some resamples at
            a time.
        exams: number of exams, at least 2.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 13.3 (interval) and 15.4 (level reached).
        Koehn 2004, EMNLP, for scores of a whole test set.
    """
    parts = [differences(counts_RE) for counts_RE in draws(exams, seed=seed, bootstrap_samples=bootstrap_samples)]
    drawn_KR = np.concatenate(parts, axis=-1)
    low_K, high_K = percentile_interval(drawn_KR)
    values_K = differences(np.ones((1, exams)))[:, 0]
    fewer_K = np.minimum((drawn_KR <= EPSILON).sum(-1), (drawn_KR >= -EPSILON).sum(-1))
    p_K = np.minimum(1.0, 2 * (1 + fewer_K) / (1 + bootstrap_samples))
    return [Difference(*map(float, row)) for row in zip(values_K, low_K, high_K, p_K)]
