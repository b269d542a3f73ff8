"""The published augmentation: random crop and horizontal flip.

Shapes: B batch, V views, C channels, H W image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.errors import UserError


@register("augment", "crop")
class Crop:
    """A random square crop of each view, resized to the full image; flips only if `flip` is above 0.

    The published code resizes images to 256 pixels, trains on random 224 x 224 crops and tests on images of 224 pixels.
    For square images, the crop of 224 / 256 of the side here is the same, slightly smoother, and needs no second stored
    size. Other images differ: the published code resizes the shorter side to 256 pixels and crops a square, and
    squashes test images to a square; here images are padded to a square in training and testing.

    Source:
        The published preprocessing of Li et al. 2024, arXiv 2406.00644, which is that of R2Gen: Chen et al. 2020,
        arXiv 2010.16056; there, too, each view is cropped and flipped by itself.

    Args:
        share: Side of the crop; 1 keeps the whole image. [share of the side]
        flip: Probability of a horizontal flip. Only for reports that name no side: a flip makes left right.
            [share of views]
    """

    mirrors = ("flip",)

    def __init__(self, *, share: Fraction = 0.875, flip: Fraction = 0.0) -> None:
        if share == 0:
            raise UserError("out-of-range", "found 0", place="data.augment.share", expected="above 0, at most 1")
        self.share, self.flip = share, flip

    def __call__(self, image_BVCHW: Tensor, seeds: list[int]) -> Tensor:
        """Crops each view by its own random numbers, which depend only on the exam's seed and the view's position."""
        batch, views = image_BVCHW.shape[:2]
        rows = [torch.rand(views, 3, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        draws_M3 = torch.cat(rows)
        flip = torch.where(draws_M3[:, 2] < self.flip, -self.share, self.share)
        affine_M23 = torch.zeros(batch * views, 2, 3)
        affine_M23[:, 0, 0], affine_M23[:, 1, 1] = flip, self.share
        affine_M23[:, :, 2] = (draws_M3[:, :2] * 2 - 1) * (1 - self.share)
        flat = image_BVCHW.flatten(0, 1)
        grid = F.affine_grid(affine_M23.to(flat), list(flat.shape), align_corners=False)
        # Beyond the outermost pixel centres, border padding repeats the pixels as resizing does.
        part = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
        return part.clamp(0, 1).unflatten(0, (batch, views))
