"""A small convolutional encoder for tests and first runs; with group norm, results do not depend on the batch."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from framework.exam import Features
from framework.models.views import encode_views, view_pooling, view_positions
from framework.registry import register
from framework.runtime.errors import UserError


@register("encoder", "tiny_cnn")
class TinyCnn(nn.Module):
    """Four strided convolutions with group norm.

    Source:
        Sonoscribe; group norm: Wu and He 2018, arXiv 1803.08494.

    Args:
        width: Channels of the last layer, a multiple of 8; the first layer has an eighth of them. [channels]
        fusion: `concatenate` concatenates the patches of all views; `attention` pools the views at each position.
        max_views: Maximum number of views of an exam, each with its embedding; 0 for any number without order. [views]
    """

    gives = ("patches", "pooled")

    def __init__(
        self,
        *,
        channels: int,
        width: PositiveInt = 64,
        fusion: Literal["concatenate", "attention"] = "concatenate",
        max_views: NonNegativeInt = 4,
    ) -> None:
        super().__init__()
        if width % 8:
            raise UserError(
                "does-not-divide", f"found {width}", place="model.encoder.width", expected="a multiple of 8"
            )
        self.width = width
        layers: list[nn.Module] = []
        before = channels
        for after in (width // 8, width // 4, width // 2, width):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.ReLU()]
            before = after
        self.layers = nn.Sequential(*layers)
        self.position_VD = view_positions(max_views, width)
        self.pooling = view_pooling(fusion, width)

    def forward(self, image_BVCHW: Tensor, view_mask_BV: Tensor) -> Features:
        return encode_views(self.maps, image_BVCHW, view_mask_BV, self.position_VD, self.pooling)

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters from the image to the features, one stage per convolution and norm."""
        stages = [list(self.layers[at : at + 3].parameters()) for at in range(0, len(self.layers), 3)]
        known = {id(weight) for weight in self.layers.parameters()}
        stages[-1] += [weight for weight in self.parameters() if id(weight) not in known]
        return stages

    def maps(self, image_MCHW: Tensor) -> Tensor:
        return self.layers(image_MCHW - 0.5)
