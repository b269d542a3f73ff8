"""The contract of encoders, held by each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from plugins.encoder.resnet import ResNet
from plugins.encoder.tiny_cnn import TinyCnn

MAKE = {
    "tiny_cnn": lambda channels: TinyCnn(channels=channels, width=16),
    "resnet": lambda channels: ResNet(channels=channels, depth=10, width=8),
    "resnet, group norm": lambda channels: ResNet(channels=channels, depth=10, width=8, norm="group"),
    "resnet, bottleneck": lambda channels: ResNet(channels=channels, depth=50, width=4),
}


@pytest.fixture(params=MAKE)
def make(request: pytest.FixtureRequest):
    return MAKE[request.param]


def views(channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(3, 2, channels, 64, 64), torch.tensor([[True, True], [True, False], [True, True]])


@pytest.mark.parametrize("channels", [1, 3])
def test_features_have_the_promised_shapes(make, channels: int) -> None:
    encoder = make(channels)
    features = encoder(*views(channels))
    batch, patches, width = features.patches_BND.shape
    assert (batch, width) == (3, encoder.width)
    assert features.patch_mask_BN.shape == (3, patches) and features.pooled_BD.shape == (3, encoder.width)
    assert features.patch_mask_BN.sum(1).tolist() == [patches, patches // 2, patches]


def test_the_gap_of_a_missing_view_changes_nothing(make) -> None:
    encoder = make(1).eval()
    image, mask = views()
    other = image.clone()
    other[1, 1] = 0.9
    for one, two in zip(encoder(image, mask), encoder(other, mask)):
        assert torch.equal(one, two)


def test_every_parameter_gets_a_gradient(make) -> None:
    encoder = make(1)
    features = encoder(*views())
    (features.pooled_BD.square().sum() + features.patches_BND.square().sum()).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in encoder.named_parameters() if "position" not in n
    )


def test_an_image_and_its_neighbours_do_not_mix_outside_training(make) -> None:
    encoder = make(1).eval()
    image, mask = views()
    alone = encoder(image[:1], mask[:1])
    together = encoder(image, mask)
    assert torch.allclose(alone.pooled_BD, together.pooled_BD[:1], atol=1e-5)


def test_weights_survive_saving(make) -> None:
    torch.manual_seed(1)
    one = make(1).eval()
    torch.manual_seed(2)
    two = make(1).eval()
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(*views()).pooled_BD, two(*views()).pooled_BD)


def test_more_views_than_the_encoder_is_built_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 views, the encoder is built for 4: raise model.encoder.max_views"):
        TinyCnn(channels=1)(torch.rand(1, 5, 1, 32, 32), torch.ones(1, 5, dtype=torch.bool))


def test_group_norm_leaves_no_batch_norm() -> None:
    assert not any(isinstance(part, nn.BatchNorm2d) for part in MAKE["resnet, group norm"](1).modules())


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
    with pytest.raises(ValueError, match="does not load"):
        ResNet(channels=3, depth=18, weights=str(tmp_path / "nowhere"))
