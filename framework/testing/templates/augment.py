"""Random gain: makes all views of an exam brighter or darker.

Shapes: B batch, V views, C channels, H W image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from framework.registry import register
from framework.registry.types import Fraction


@register("augment", "my_augment")
class MyAugment:
    """Multiplies the grey levels of an exam by a random factor near 1.

    Args:
        gain: Maximum change of the factor. [share]
    """

    def __init__(self, *, gain: Fraction = 0.1) -> None:
        self.gain = gain

    def __call__(self, image_BVCHW: Tensor, seeds: list[int]) -> Tensor:
        """Draws from each exam's own seed, so that results do not depend on the batch."""
        draws = [torch.rand((), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        factor_B = 1 + self.gain * (2 * torch.stack(draws) - 1)
        return (image_BVCHW * factor_B.to(image_BVCHW.device).view(-1, 1, 1, 1, 1)).clamp(0, 1)
