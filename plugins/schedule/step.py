"""The published learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable

from framework.registry import register
from framework.registry.types import Fraction


@register("schedule", "step")
def step(*, steps: int, every: Fraction = 0.56, gamma: Fraction = 0.1) -> Callable[[int], float]:
    """Step decay: multiplies the learning rate by `gamma` at even intervals.

    Source:
        The published recipes of Li et al. 2024, arXiv 2406.00644: after epoch 28 of 50, by ten.

    Args:
        every: Fraction of all steps between two decays; 0 for none. [share of steps]
        gamma: Factor of each decay.
    """
    interval = round(every * steps)
    return lambda number: gamma ** (number // interval) if interval else 1.0
