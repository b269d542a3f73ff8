"""The default learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

from framework.registry import register
from framework.registry.types import Fraction


@register("schedule", "cosine")
def cosine(*, steps: int, warmup: Fraction = 0.05, floor: Fraction = 0.0) -> Callable[[int], float]:
    """A linear warm-up, then half a cosine down.

    Source:
        Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.

    Args:
        warmup: Share of all steps that the rate rises over. [share of steps]
        floor: Share of the rate that is left at the last step. [share of lr]
    """
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, steps - rise)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor
