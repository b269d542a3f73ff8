"""The statistics of a grid's table: spread over seeds, differences over resampled exams, Holm's correction.

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
# Below this a difference is rounding: equal scores that were summed in another order.
NOTHING = 1e-12


@dataclass(frozen=True)
class Difference:
    """What resampled exams tell of a difference."""

    value: float  # on the exams themselves
    low: float  # 95 % interval
    high: float
    p: float  # two-sided


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation (n - 1); None of no values."""
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number, in the order given: the chance of a single false alarm among them all.

    The smallest of m counts m times, the next m - 1 times and so on; none is below a smaller one's, nor above 1.

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = so_far
    return corrected


def bootstrap_differences(
    differences: Callable[[np.ndarray], np.ndarray], exams: int, *, seed: int, bootstrap_samples: int = RESAMPLES
) -> list[Difference]:
    """Differences on exams drawn with replacement, as many as there are.

    What is compared is computed on one and the same resample, which makes the comparison paired. The interval is from
    the 2.5 % to the 97.5 % point of the resampled differences. p is what goes with such an interval: twice the smaller
    share of resamples on either side of 0, those at 0 on both, with the exams themselves counted in so that it is
    never 0:

        p = min(1, 2 (1 + min(#{d <= 0}, #{d >= 0})) / (1 + R))

    Args:
        differences: gives them, [K, R], from how often each exam is in each resample, [R, E]; called with some
            resamples at a time.
        exams: at least 2.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 13.3 (interval) and 15.4 (level reached).
        Koehn 2004, EMNLP, for scores of a whole test set.
    """
    parts = [differences(counts_RE) for counts_RE in draws(exams, seed=seed, bootstrap_samples=bootstrap_samples)]
    drawn_KR = np.concatenate(parts, axis=-1)
    low_K, high_K = percentile_interval(drawn_KR)
    values_K = differences(np.ones((1, exams)))[:, 0]
    fewer_K = np.minimum((drawn_KR <= NOTHING).sum(-1), (drawn_KR >= -NOTHING).sum(-1))
    p_K = np.minimum(1.0, 2 * (1 + fewer_K) / (1 + bootstrap_samples))
    return [Difference(*map(float, row)) for row in zip(values_K, low_K, high_K, p_K)]
