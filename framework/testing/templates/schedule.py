"""A learning rate that falls evenly."""

from __future__ import annotations

from collections.abc import Callable

from framework.registry import register
from framework.registry.types import Fraction


@register("schedule", "my_schedule")
def my_schedule(*, steps: int, floor: Fraction = 0.0) -> Callable[[int], float]:
    """A straight line down from the full rate.

    Args:
        floor: Share of the rate that is left after the last step.
    """
    return lambda step: 1 - (1 - floor) * min(1.0, step / steps)
