"""Patch embedding: splits views into square patches and maps each by one layer.

Shapes: B batch, V views, C channels, H W image, M views of all exams, D width.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor, nn

from framework.exam import Features
from framework.models.views import encode_views, view_positions
from framework.registry import register


@register("encoder", "my_encoder")
class MyEncoder(nn.Module):
    """A linear layer over square patches, with a norm.

    Args:
        width: Width of the features. [channels]
        patch: Side of a patch; must divide the image size. [px]
        max_views: Maximum number of views of an exam. [views]
    """

    gives = ("patches", "pooled")

    def __init__(
        self, *, channels: int, width: PositiveInt = 64, patch: PositiveInt = 16, max_views: PositiveInt = 4
    ) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.norm = nn.GroupNorm(1, width)
        self.position_VD = view_positions(max_views, width)

    def forward(self, image_BVCHW: Tensor, view_mask_BV: Tensor) -> Features:
        return encode_views(self.maps, image_BVCHW, view_mask_BV, self.position_VD)

    def maps(self, image_MCHW: Tensor) -> Tensor:
        """Feature maps [M, D, h, w] of the present views; `encode_views` joins them by exam."""
        return self.norm(self.embed(image_MCHW - 0.5)).relu()
