"""Maps of the views from the weights of patches."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from framework.models.views import encode_views, view_maps, view_pooling

PLAIN, POOLED = SimpleNamespace(), SimpleNamespace(pooling=view_pooling("attention", 4))


def test_a_map_has_the_place_of_each_patch() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.float).reshape(2, 3, 1, 4, 4)
    features = encode_views(lambda image: image, images, torch.ones(2, 3, dtype=torch.bool), None)
    maps = view_maps(features.patches_BND.transpose(1, 2), 3, PLAIN)
    assert maps is not None and torch.equal(maps[:, 0], images[:, :, 0])


def test_an_encoder_that_pools_views_has_one_map_for_all() -> None:
    weights = torch.rand(2, 5, 16)
    assert [tuple(view_maps(weights, 4, each).shape) for each in (PLAIN, POOLED)] == [(2, 5, 4, 2, 2), (2, 5, 1, 4, 4)]  # type: ignore[union-attr]


def test_patches_that_form_no_square_have_no_map() -> None:
    assert view_maps(torch.rand(1, 1, 10), 2, PLAIN) is None  # 5 patches a view
    assert view_maps(torch.rand(1, 1, 9), 2, PLAIN) is None
