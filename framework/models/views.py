"""Runs an image backbone over exams with any number of views, and puts the views' patches together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from framework.exam import Features


def encode_views(
    backbone: Callable[[Tensor], Tensor],
    image_BVCHW: Tensor,
    view_mask_BV: Tensor,
    position_VD: Tensor | None,
    pooling: ViewAttention | None = None,
) -> Features:
    """Features of every view that is there; the gaps of exams with fewer views cost nothing and touch no statistics.

    Args:
        backbone: images [M, C, H, W] to maps [M, D, h, w].
        position_VD: what tells the first view from the second, at least V rows; None: their order means nothing.
        pooling: makes one map of an exam's views; None lays their patches side by side.

    Returns:
        Features with N = V * h * w patches, or h * w where they are pooled; `pooled_BD` is the mean over an exam's
        patches.
    """
    views = view_mask_BV.shape[1]
    require_places("an exam", views, position_VD)
    rows = view_mask_BV.nonzero()  # places, not a mask: their number is the shape of what comes, even of fake images
    maps_MDhw = backbone(image_BVCHW[rows[:, 0], rows[:, 1]])
    patches_MPD = maps_MDhw.flatten(2).transpose(1, 2)
    batch, (_, per_view, width) = image_BVCHW.shape[0], patches_MPD.shape
    if position_VD is not None:
        patches_MPD = patches_MPD + position_VD[rows[:, 1]].unsqueeze(1).to(patches_MPD.dtype)
    flat = patches_MPD.new_zeros(batch * views, per_view, width)
    flat = flat.index_copy(0, rows[:, 0] * views + rows[:, 1], patches_MPD)
    if pooling is not None:
        patches_BND = pooling(flat.unflatten(0, (batch, views)), view_mask_BV)
        mask_BN = view_mask_BV.any(1, keepdim=True).expand(-1, per_view)
        return Features(patches_BND, mask_BN, patches_BND.mean(1))
    patches_BND = flat.reshape(batch, views * per_view, width)
    mask_BN = view_mask_BV.repeat_interleave(per_view, dim=1)
    pooled_BD = patches_BND.sum(1) / mask_BN.sum(1, keepdim=True).clamp(min=1)
    return Features(patches_BND, mask_BN, pooled_BD)


def require_places(exam: str, views: int, position_VD: Tensor | None) -> None:
    """Raises ValueError where an exam has more views than an encoder with these positions takes."""
    if position_VD is not None and views > position_VD.shape[0]:
        raise ValueError(
            f"{exam} has {views} views, the encoder is built for {position_VD.shape[0]}: raise "
            "model.encoder.max_views and train anew, or give fewer views"
        )


def view_positions(max_views: int, width: int) -> nn.Parameter | None:
    """One learned vector a view, small at the start; None where there are none to tell apart."""
    return nn.Parameter(torch.randn(max_views, width) * 0.02) if max_views else None


class ViewAttention(nn.Module):
    """One map of all views: at each place of it, their patches weighted by learned attention over the views there.

    Source:
        Ilse et al. 2018, arXiv 1802.04712, equations 7 and 8, with a bag for each place of the map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(1, width // 4)
        # Without a bias at the end, which would not change a softmax.
        self.score = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False))

    def forward(self, patches_BVPD: Tensor, view_mask_BV: Tensor) -> Tensor:
        """Patches [B, P, D]; zeros of an exam without views."""
        scores_BVP = self.score(patches_BVPD).squeeze(-1).float()
        scores_BVP = scores_BVP.masked_fill(~view_mask_BV[..., None], torch.finfo(scores_BVP.dtype).min)
        weights_BVP = scores_BVP.softmax(1).to(patches_BVPD.dtype)
        return (weights_BVP[..., None] * patches_BVPD).sum(1)


def view_pooling(fusion: str, width: int) -> ViewAttention | None:
    """What an encoder's key `fusion` asks for: `attention`, or `concatenate`, which pools nothing."""
    return ViewAttention(width) if fusion == "attention" else None
