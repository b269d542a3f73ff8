"""Maps of the views from the weights of patches."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from framework.models.exporting import exporting
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


def test_a_program_encodes_every_view_and_gives_the_same_features() -> None:
    draw = torch.Generator().manual_seed(0)
    images, mask = torch.rand(2, 3, 4, 2, 2, generator=draw), torch.tensor([[True, True, False], [True, False, True]])
    positions, seen = torch.rand(3, 4, generator=draw), []

    def backbone(image_MCHW: torch.Tensor) -> torch.Tensor:
        seen.append(len(image_MCHW))
        return image_MCHW

    for pooling in (None, POOLED.pooling):
        expected = encode_views(backbone, images, mask, positions, pooling)
        with exporting():
            found = encode_views(backbone, images, mask, positions, pooling)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert seen == [4, 6, 4, 6]
