"""The published learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable

from framework.registry import register
from framework.registry.types import Fraction


@register("schedule", "step")
def step(*, steps: int, every: Fraction = 0.56, gamma: Fraction = 0.1) -> Callable[[int], float]:
    """The rate drops by a factor at even distances.

    Source:
        The published recipes of Li et al. 2024, arXiv 2406.00644: after epoch 28 of 50, by ten.

    Args:
        every: Share of all steps between two drops; 0 never drops. [share of steps]
        gamma: What a drop multiplies the rate by.
    """
    distance = round(every * steps)
    return lambda number: gamma ** (number // distance) if distance else 1.0
