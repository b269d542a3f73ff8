"""The default learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

from framework.registry import register
from framework.registry.types import Fraction


@register("schedule", "cosine")
def cosine(*, steps: int, warmup: Fraction = 0.05, floor: Fraction = 0.0) -> Callable[[int], float]:
    """Linear warmup, then cosine decay.

    Source:
        Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.

    Args:
        warmup: Fraction of all steps over which the learning rate rises linearly. [share of steps]
        floor: Learning rate at the last step. [share of lr]
    """
    warmup_steps = round(warmup * steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
