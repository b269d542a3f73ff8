"""Small changes of place and brightness, such as another hand on the probe would make."""

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
    """Shifts, scales, turns, and changes gain and contrast; mirrors only where told to.

    Source:
        Sonoscribe.

    Args:
        shift: Largest shift. [share of the image]
        scale: Largest change of scale. [share]
        degrees: Largest rotation. [degrees]
        gain: Largest change of brightness. [share of white]
        contrast: Largest change of contrast. [share]
        flip: How many exams are mirrored left to right. Only for reports that name no side: a mirrored left is a right.
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
        self.most = torch.tensor([shift * 2, shift * 2, scale, math.radians(degrees), gain, contrast])
        self.flip = flip

    def __call__(self, image_BVCHW: Tensor, seeds: list[int]) -> Tensor:
        """The same change for all views of an exam, drawn from its seed alone."""
        batch, views = image_BVCHW.shape[:2]
        draws_B7 = torch.stack([torch.rand(7, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        drawn_B6 = ((draws_B7[:, :6] * 2 - 1) * self.most).to(image_BVCHW.device)
        dx, dy, scale, angle, gain, contrast = drawn_B6.repeat_interleave(views, dim=0).unbind(1)
        mirror = torch.where(draws_B7[:, 6] < self.flip, -1.0, 1.0).to(dx.device).repeat_interleave(views)
        cos, sin = torch.cos(angle) * (1 + scale), torch.sin(angle) * (1 + scale)
        turn_M23 = torch.stack([torch.stack([cos * mirror, -sin, dx], 1), torch.stack([sin * mirror, cos, dy], 1)], 1)
        flat = image_BVCHW.flatten(0, 1)
        moved = F.grid_sample(flat, F.affine_grid(turn_M23, list(flat.shape), align_corners=False), align_corners=False)
        shape = (-1, 1, 1, 1)
        # Black stays black: outside of the scan area there is no signal to amplify.
        lit = (moved * (1 + contrast.view(shape)) + gain.view(shape) * (moved > 0.02)).clamp(0, 1)
        return lit.unflatten(0, (batch, views))
