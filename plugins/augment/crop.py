"""The published augmentation: a random part of the image, and its mirror image.

Shapes: B batch, V views, C channels, H W image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.registry import register
from framework.registry.types import Fraction


@register("augment", "crop")
class Crop:
    """A random square part of each view, enlarged to the whole; mirrors only where told to.

    Published, images are resized to 256 pixels, a random 224 x 224 of them is trained on, and 224 are tested on. Of a
    square image, what is trained on shows 224 / 256 of the side, enlarged as much; the part that is cut here, of the
    image that the model would be tested on, is the same, a little smoother, and no second size is stored. Other images
    differ: published, the shorter side becomes 256 pixels and the part is cut to a square, and in testing the image is
    squashed to one; here both times it is padded to a square before anything is cut.

    Source:
        The published preprocessing of Li et al. 2024, arXiv 2406.00644, which is that of R2Gen: Chen et al. 2020,
        arXiv 2010.16056; there, too, each view is cut and mirrored by itself.

    Args:
        share: Side of the part; 1 cuts nothing. [share of the side]
        flip: How many views are mirrored left to right. Only for reports that name no side: a mirrored left is a right.
            [share of views]
    """

    mirrors = ("flip",)

    def __init__(self, *, share: Fraction = 0.875, flip: Fraction = 0.0) -> None:
        if share == 0:
            raise ValueError("data.augment.share: 0 of the side leaves no image; expected above 0, at most 1")
        self.share, self.flip = share, flip

    def __call__(self, image_BVCHW: Tensor, seeds: list[int]) -> Tensor:
        """Each view by numbers of its own, which the exam's seed and its place among the views alone decide."""
        batch, views = image_BVCHW.shape[:2]
        rows = [torch.rand(views, 3, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        draws_M3 = torch.cat(rows)
        mirror = torch.where(draws_M3[:, 2] < self.flip, -self.share, self.share)
        turn_M23 = torch.zeros(batch * views, 2, 3)
        turn_M23[:, 0, 0], turn_M23[:, 1, 1] = mirror, self.share
        turn_M23[:, :, 2] = (draws_M3[:, :2] * 2 - 1) * (1 - self.share)
        flat = image_BVCHW.flatten(0, 1)
        grid = F.affine_grid(turn_M23.to(flat), list(flat.shape), align_corners=False)
        # The outermost half pixel lies beyond the last centre: it repeats it, as resizing does.
        part = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
        return part.clamp(0, 1).unflatten(0, (batch, views))
