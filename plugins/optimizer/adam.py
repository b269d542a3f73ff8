"""The published optimizer."""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch.optim import Adam

from framework.models.device import on_cpu
from framework.optim import Group, param_groups
from framework.registry import register
from framework.registry.types import Fraction


@register("optimizer", "adam")
def adam(
    *,
    groups: list[Group],
    weight_decay: NonNegativeFloat = 0.0,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    amsgrad: bool = False,
) -> Adam:
    """Adam with weight decay as an L2 penalty: it is added to the gradient.

    Source:
        Kingma and Ba 2015, arXiv 1412.6980, algorithm 1; amsgrad: Reddi et al. 2018, arXiv 1904.09237, algorithm 2.

    Args:
        weight_decay: L2 penalty of matrices and filters; biases and norms have none.
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment.
        amsgrad: Uses the maximum of past second moments, as the published recipes do.
    """
    return Adam(param_groups(groups, weight_decay), betas=(beta1, beta2), amsgrad=amsgrad, fused=not on_cpu())
