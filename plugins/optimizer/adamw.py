"""The default optimizer."""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch.optim import AdamW

from framework.models.device import on_cpu
from framework.optim import Group, param_groups
from framework.registry import register
from framework.registry.types import Fraction


@register("optimizer", "adamw")
def adamw(
    *,
    groups: list[Group],
    weight_decay: NonNegativeFloat = 0.01,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    amsgrad: bool = False,
) -> AdamW:
    """Adam with decoupled weight decay.

    Source:
        Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; amsgrad: Reddi et al. 2018, arXiv 1904.09237.

    Args:
        weight_decay: Weight decay of matrices and filters; biases and norms have none. [share of lr]
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment.
        amsgrad: Uses the maximum of past second moments, as the published recipes do.
    """
    return AdamW(param_groups(groups, weight_decay), betas=(beta1, beta2), amsgrad=amsgrad, fused=not on_cpu())
