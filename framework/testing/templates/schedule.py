"""Linear decay of the learning rate."""

from __future__ import annotations

from collections.abc import Callable

from framework.registry import register
from framework.registry.types import Fraction


@register("schedule", "my_schedule")
def my_schedule(*, steps: int, floor: Fraction = 0.0) -> Callable[[int], float]:
    """Linear decay.

    Args:
        floor: Learning rate after the last step. [share of lr]
    """
    return lambda step: 1 - (1 - floor) * min(1.0, step / steps)
