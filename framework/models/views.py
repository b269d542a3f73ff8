"""Applies an image backbone to exams with any number of views, and joins the patches of the views."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from framework.exam import Features
from framework.models.exporting import is_exporting
from framework.runtime.errors import UserError


def encode_views(
    backbone: Callable[[Tensor], Tensor],
    image_BVCHW: Tensor,
    view_mask_BV: Tensor,
    position_VD: Tensor | None,
    pooling: ViewAttention | None = None,
) -> Features:
    """Encodes the present views; missing views cost no computation and do not enter batch statistics. In an
    exported program, which cannot depend on their number, missing views are encoded and then set to 0.

    Args:
        backbone: maps images [M, C, H, W] to feature maps [M, D, h, w].
        position_VD: view embeddings, at least V rows; None ignores the order of views.
        pooling: pools the views of an exam into one map; None concatenates their patches.

    Returns:
        Features with N = V * h * w patches, or h * w with `pooling`; `pooled_BD` is the mean over an exam's patches.
    """
    views = view_mask_BV.shape[1]
    require_view_count("an exam", views, position_VD)
    rows = _encoded_views(view_mask_BV)  # indices, not a mask: output shapes are then known for fake tensors too
    maps_MDhw = backbone(image_BVCHW[rows[:, 0], rows[:, 1]])
    patches_MPD = maps_MDhw.flatten(2).transpose(1, 2)
    batch, (_, per_view, width) = image_BVCHW.shape[0], patches_MPD.shape
    if position_VD is not None:
        patches_MPD = patches_MPD + position_VD[rows[:, 1]].unsqueeze(1).to(patches_MPD.dtype)
    flat = patches_MPD.new_zeros(batch * views, per_view, width)
    flat = flat.index_copy(0, rows[:, 0] * views + rows[:, 1], patches_MPD)
    if is_exporting():
        flat = flat * view_mask_BV.flatten()[:, None, None]
    if pooling is not None:
        patches_BND = pooling(flat.unflatten(0, (batch, views)), view_mask_BV)
        mask_BN = view_mask_BV.any(1, keepdim=True).expand(-1, per_view)
        return Features(patches_BND, mask_BN, patches_BND.mean(1))
    patches_BND = flat.reshape(batch, views * per_view, width)
    mask_BN = view_mask_BV[..., None].expand(-1, -1, per_view).flatten(1)
    pooled_BD = patches_BND.sum(1) / mask_BN.sum(1, keepdim=True).clamp(min=1)
    return Features(patches_BND, mask_BN, pooled_BD)


def _encoded_views(view_mask_BV: Tensor) -> Tensor:
    """Exam and number of each view that is encoded, [M, 2]."""
    if not is_exporting():
        return view_mask_BV.nonzero()
    batch, views = view_mask_BV.shape
    exam_B, view_V = (torch.arange(size, device=view_mask_BV.device) for size in (batch, views))
    return torch.stack([exam_B[:, None].expand(batch, views), view_V.expand(batch, views)], -1).flatten(0, 1)


def require_view_count(exam: str, views: int, position_VD: Tensor | None) -> None:
    """Raises `out-of-range` if an exam has more views than the encoder has view embeddings."""
    if position_VD is not None and views > position_VD.shape[0]:
        raise UserError(
            "out-of-range",
            f"{exam} has {views} views",
            place="model.encoder.max_views",
            expected=f"at most {position_VD.shape[0]}",
            hint="Raise model.encoder.max_views and train again, or give fewer views.",
        )


def view_positions(max_views: int, width: int) -> nn.Parameter | None:
    """Learned view embeddings, initialized small; None if `max_views` is 0."""
    return nn.Parameter(torch.randn(max_views, width) * 0.02) if max_views else None


def view_maps(weights_BTN: Tensor, views: int, encoder: Any) -> Tensor | None:
    """Weights of patches as maps [B, T, V, h, w]: one for each view, or V = 1 map for all if the encoder pools views.

    Patches lie as `encode_views` returns them, view by view and row by row. Images are square, so a map has as many
    rows as columns; None for other numbers of patches.
    """
    if getattr(encoder, "pooling", None) is not None:
        views = 1
    per_view, rest = divmod(weights_BTN.shape[-1], views)
    side = math.isqrt(per_view)
    return None if rest or side * side != per_view else weights_BTN.unflatten(-1, (views, side, side))


class ViewAttention(nn.Module):
    """Pools the views into one map: at each position, learned attention over the views weights their patches.

    Source:
        Ilse et al. 2018, arXiv 1802.04712, equations 7 and 8, with one bag per position of the map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(1, width // 4)
        # A bias of the last layer would not change the softmax.
        self.score = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False))

    def forward(self, patches_BVPD: Tensor, view_mask_BV: Tensor) -> Tensor:
        """Patches [B, P, D]; zeros for an exam without views."""
        scores_BVP = self.score(patches_BVPD).squeeze(-1).float()
        scores_BVP = scores_BVP.masked_fill(~view_mask_BV[..., None], torch.finfo(scores_BVP.dtype).min)
        weights_BVP = scores_BVP.softmax(1).to(patches_BVPD.dtype)
        return (weights_BVP[..., None] * patches_BVPD).sum(1)


def view_pooling(fusion: str, width: int) -> ViewAttention | None:
    """The pooling that an encoder's key `fusion` names: `attention`, or `concatenate`, which has none."""
    return ViewAttention(width) if fusion == "attention" else None
