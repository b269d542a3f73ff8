"""The published learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable

from framework.registry import register
from framework.values import Fraction


@register("schedule", "step")
def step(*, steps: int, every: Fraction = 0.56, gamma: Fraction = 0.1) -> Callable[[int], float]:
    """The rate drops by a factor at even distances (published: after epoch 28 of 50, by ten).

    Args:
        every: Share of all steps between two drops; 0 never drops.
        gamma: What a drop multiplies the rate by.
    """
    distance = round(every * steps)
    return lambda number: gamma ** (number // distance) if distance else 1.0
