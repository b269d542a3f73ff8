"""What Sonoscribe asks of an encoder and of a metric."""

import torch
from acme_ultrasound.length_ratio import LengthRatio
from acme_ultrasound.wavelet import Wavelet, haar

from framework import testing


def test_the_encoder_keeps_its_promises() -> None:
    testing.check_encoder(lambda **given: Wavelet(levels=2, width=16, **given))


def test_the_metric_keeps_its_promises() -> None:
    testing.check_metric(LengthRatio)


def test_a_haar_step_keeps_the_energy_of_an_image() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 1, 8, 8)
    assert torch.allclose(haar(image).square().sum(), image.square().sum())
    assert torch.allclose(haar(torch.ones(1, 1, 2, 2)).flatten(), torch.tensor([2.0, 0.0, 0.0, 0.0]))
