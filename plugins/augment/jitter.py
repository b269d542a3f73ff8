"""Small geometric and intensity changes, as between two sonographers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from framework.registry import register
from framework.registry.types import Fraction


@register("augment", "jitter")
class Jitter:
    """Random shift, scale, rotation, gain and contrast; flips only if `flip` is above 0.

    Source:
        Sonoscribe.

    Args:
        shift: Maximum shift. [share of the image]
        scale: Maximum change of scale. [share]
        degrees: Maximum rotation. [degrees]
        gain: Maximum change of brightness. [share of white]
        contrast: Maximum change of contrast. [share]
        flip: Probability of a horizontal flip. Only for reports that name no side: a flip makes left right.
            [share of exams]
    """

    mirrors = ("flip",)

    def __init__(
        self,
        *,
        shift: Fraction = 0.05,
        scale: Fraction = 0.05,
        degrees: NonNegativeFloat = 5.0,
        gain: Fraction = 0.08,
        contrast: Fraction = 0.15,
        flip: Fraction = 0.0,
    ) -> None:
        self.limits = torch.tensor([shift * 2, shift * 2, scale, math.radians(degrees), gain, contrast])
        self.flip = flip

    def __call__(self, image_BVCHW: Tensor, seeds: list[int]) -> Tensor:
        """The same change for all views of an exam, drawn from its seed alone."""
        batch, views = image_BVCHW.shape[:2]
        draws_B7 = torch.stack([torch.rand(7, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        params_B6 = ((draws_B7[:, :6] * 2 - 1) * self.limits).to(image_BVCHW.device, non_blocking=True)
        dx, dy, scale, angle, gain, contrast = params_B6.repeat_interleave(views, dim=0).unbind(1)
        flip = (
            torch.where(draws_B7[:, 6] < self.flip, -1.0, 1.0).to(dx.device, non_blocking=True).repeat_interleave(views)
        )
        cos, sin = torch.cos(angle) * (1 + scale), torch.sin(angle) * (1 + scale)
        affine_M23 = torch.stack([torch.stack([cos * flip, -sin, dx], 1), torch.stack([sin * flip, cos, dy], 1)], 1)
        flat = image_BVCHW.flatten(0, 1)
        moved = F.grid_sample(
            flat, F.affine_grid(affine_M23, list(flat.shape), align_corners=False), align_corners=False
        )
        shape = (-1, 1, 1, 1)
        # Black stays black: there is no signal outside the scan area.
        lit = (moved * (1 + contrast.view(shape)) + gain.view(shape) * (moved > 0.02)).clamp(0, 1)
        return lit.unflatten(0, (batch, views))
