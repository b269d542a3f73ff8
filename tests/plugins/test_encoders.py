"""What is an encoder's own; the contract of its kind is in test_contracts.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from plugins.encoder.resnet import ResNet
from plugins.encoder.tiny_cnn import TinyCnn


def views(channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(3, 2, channels, 64, 64), torch.tensor([[True, True], [True, False], [True, True]])


def test_more_views_than_the_encoder_is_built_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 views, the encoder is built for 4: raise model.encoder.max_views"):
        TinyCnn(channels=1)(torch.rand(1, 5, 1, 32, 32), torch.ones(1, 5, dtype=torch.bool))


def test_group_norm_leaves_no_batch_norm() -> None:
    assert not any(
        isinstance(part, nn.BatchNorm2d) for part in ResNet(channels=1, depth=10, width=8, norm="group").modules()
    )


def test_grey_images_see_pretrained_weights_as_three_equal_channels_would(tmp_path: Path) -> None:
    torch.manual_seed(3)
    ResNet(channels=3, depth=10, width=8).backbone.save_pretrained(tmp_path)
    grey = ResNet(channels=1, depth=10, width=8, weights=str(tmp_path)).eval()
    colour = ResNet(channels=3, depth=10, width=8, weights=str(tmp_path)).eval()
    image, mask = views()
    grey.load_state_dict({"position_VD": colour.position_VD}, strict=False)  # each drew its own
    seen = [grey(image, mask), colour(image.expand(-1, -1, 3, -1, -1), mask)]
    assert torch.allclose(seen[0].pooled_BD, seen[1].pooled_BD, atol=1e-5)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    ResNet(channels=3, depth=10, width=8).backbone.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has depths \[1, 1, 1, 1\], but depth 18"):
        ResNet(channels=3, depth=18, width=8, weights=str(tmp_path))
    with pytest.raises(ValueError, match="no such folder"):
        ResNet(channels=3, depth=18, weights=str(tmp_path / "nowhere"))
