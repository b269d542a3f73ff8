"""An encoder on a wavelet transform of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from framework.exam import Features
from framework.models.views import encode_views, view_positions
from framework.registry import register


@register("encoder", "acme/wavelet")
class Wavelet(nn.Module):
    """Haar wavelet packets, then two convolutions.

    Source:
        Haar 1910, as packets: Coifman and Wickerhauser 1992, IEEE Trans. Inform. Theory 38(2).

    Args:
        levels: Number of wavelet levels, each of which halves the image. [levels]
        width: Channels of the feature map. [channels]
        max_views: Maximum number of views of an exam. [views]
    """

    gives = ("patches", "pooled")

    def __init__(
        self, *, channels: int, levels: PositiveInt = 3, width: PositiveInt = 64, max_views: PositiveInt = 4
    ) -> None:
        super().__init__()
        self.levels, self.width = levels, width
        self.mix = nn.Sequential(
            nn.Conv2d(channels * 4**levels, width, 1),
            nn.GroupNorm(1, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.position_VD = view_positions(max_views, width)

    def forward(self, image_BVCHW: Tensor, view_mask_BV: Tensor) -> Features:
        return encode_views(self.maps, image_BVCHW, view_mask_BV, self.position_VD)

    def maps(self, image_MCHW: Tensor) -> Tensor:
        block = 2**self.levels
        height, width = image_MCHW.shape[-2:]
        x = F.pad(image_MCHW, (0, -width % block, 0, -height % block))
        for _ in range(self.levels):
            x = haar(x)
        return self.mix(x)


def haar(x_MCHW: Tensor) -> Tensor:
    """One orthonormal Haar step: means and differences of each 2 x 2 block, [M, 4 C, H / 2, W / 2]."""
    a, b, c, d = (x_MCHW[..., row::2, column::2] for row in (0, 1) for column in (0, 1))
    return torch.cat([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], dim=1) / 2
