"""Stochastic gradient descent."""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch.optim import SGD

from framework.optim import Group, param_groups
from framework.registry import register
from framework.registry.types import Fraction


@register("optimizer", "my_optimizer")
def my_optimizer(*, groups: list[Group], momentum: Fraction = 0.9, weight_decay: NonNegativeFloat = 0.0) -> SGD:
    """Gradient descent with momentum.

    Args:
        momentum: Momentum factor.
        weight_decay: L2 penalty of matrices and filters; biases and norms have none.
    """
    return SGD(param_groups(groups, weight_decay), momentum=momentum)
