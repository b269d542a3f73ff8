"""Runs an image backbone over exams with any number of views, and lays the views' patches side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from framework.exam import Features


def encode_views(
    backbone: Callable[[Tensor], Tensor], image_BVCHW: Tensor, view_mask_BV: Tensor, position_VD: Tensor
) -> Features:
    """Features of every view that is there; the gaps of exams with fewer views cost nothing and touch no statistics.

    Args:
        backbone: images [M, C, H, W] to maps [M, D, h, w].
        position_VD: what tells the first view from the second; at least V rows.

    Returns:
        Features with N = V * h * w patches; `pooled_BD` is the mean over an exam's patches.
    """
    views, known = view_mask_BV.shape[1], position_VD.shape[0]
    if views > known:
        raise ValueError(
            f"an exam has {views} views, the encoder is built for {known}: raise model.encoder.max_views and train "
            "anew, or give fewer views"
        )
    rows = view_mask_BV.nonzero()  # places, not a mask: their number is the shape of what comes, even of fake images
    maps_MDhw = backbone(image_BVCHW[rows[:, 0], rows[:, 1]])
    patches_MPD = maps_MDhw.flatten(2).transpose(1, 2)
    batch, (_, per_view, width) = image_BVCHW.shape[0], patches_MPD.shape
    patches_MPD = patches_MPD + position_VD[rows[:, 1]].unsqueeze(1).to(patches_MPD.dtype)
    flat = patches_MPD.new_zeros(batch * views, per_view, width)
    flat = flat.index_copy(0, rows[:, 0] * views + rows[:, 1], patches_MPD)
    patches_BND = flat.reshape(batch, views * per_view, width)
    mask_BN = view_mask_BV.repeat_interleave(per_view, dim=1)
    pooled_BD = patches_BND.sum(1) / mask_BN.sum(1, keepdim=True).clamp(min=1)
    return Features(patches_BND, mask_BN, pooled_BD)


def view_positions(max_views: int, width: int) -> torch.nn.Parameter:
    """One learned vector a view, small at the start."""
    return torch.nn.Parameter(torch.randn(max_views, width) * 0.02)
