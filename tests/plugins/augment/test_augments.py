"""Augmentations: what they do to grey values and places, by formulas of their own."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import problem
from scipy import stats

from framework.testing import ContractError
from framework.testing.augment import check_augment
from plugins.augment.crop import Crop
from plugins.augment.ultrasound import KNOTS, TOE, Ultrasound

STILL = {"shift": 0.0, "scale": 0.0, "degrees": 0.0}
QUIET = {"gain": 0.0, "tgc": 0.0, "attenuation": 0.0, "speckle": 0.0, "shadow": 0.0}


def grey(level: float, exams: int = 4, views: int = 2, side: int = 40) -> torch.Tensor:
    return torch.full((exams, views, 1, side, side), level)


def test_settings_of_0_change_nothing_and_flip_mirrors_every_view() -> None:
    image = torch.rand(2, 2, 3, 24, 30)
    assert torch.allclose(Ultrasound(**STILL, **QUIET)(image, [1, 2]), image, atol=1e-5)
    assert torch.allclose(Ultrasound(**STILL, **QUIET, flip=1.0)(image, [1, 2]), image.flip(-1), atol=1e-5)


def test_black_stays_black_under_the_strongest_change() -> None:
    image = torch.zeros(3, 2, 1, 40, 40)
    image[..., 10:30, 10:30] = 0.5
    loud = Ultrasound(**STILL, gain=40.0, tgc=40.0, attenuation=40.0, speckle=1.0, shadow=1.0)
    outside = torch.ones(40, 40, dtype=torch.bool)
    outside[10:30, 10:30] = False
    assert loud(image, [1, 2, 3])[..., outside].max() == 0


def test_gain_is_in_decibels_of_the_dynamic_range_and_equal_for_all_views_of_an_exam() -> None:
    change = Ultrasound(**STILL, **{**QUIET, "gain": 6.0}, dynamic_range=60.0)(grey(0.5, exams=200), list(range(200)))
    change = change - 0.5
    assert torch.equal(change[:, 0], change[:, 1]) and torch.allclose(
        change, change[..., :1, :1].expand_as(change), atol=1e-5
    )
    drawn = change[:, 0, 0, 0, 0].numpy()
    assert stats.kstest(drawn, stats.uniform(-0.1, 0.2).cdf).pvalue > 0.01, "6 dB of 60 are a tenth of the grey scale"


def test_near_black_a_change_fades_out_evenly() -> None:
    at = [0.0, TOE / 2, TOE, 0.5]
    louder = [Ultrasound(**STILL, **{**QUIET, "gain": 6.0})(grey(level), [3] * 4).mean().item() - level for level in at]
    assert louder[0] == 0 and louder[1] == pytest.approx(louder[3] / 2, abs=1e-4)
    assert louder[2] == pytest.approx(louder[3], abs=1e-4) and abs(louder[3]) > 0.005


def test_attenuation_grows_evenly_with_depth_and_sliders_are_joined_by_lines() -> None:
    deep = Ultrasound(**STILL, **{**QUIET, "attenuation": 12.0})(grey(0.5, side=41), [1, 2, 3, 4])[:, 0, 0, :, 7] - 0.5
    assert torch.allclose(deep, deep[:, -1:] * torch.linspace(0, 1, 41), atol=1e-5) and deep[:, -1].abs().max() > 0.02
    side = 7 * (KNOTS - 1) + 1
    curve = (
        Ultrasound(**STILL, **{**QUIET, "tgc": 6.0})(grey(0.5, side=side), [1, 2, 3, 4])[:, 0, 0, :, 7].numpy() - 0.5
    )
    for row in curve:
        knots = row[::7]
        assert np.allclose(row, np.interp(np.arange(side), np.arange(0, side, 7), knots), atol=1e-5)
        assert np.abs(knots).max() <= 0.1 and len(set(knots.round(6))) == KNOTS


def test_speckle_has_the_moments_of_its_distribution_and_a_grain_wider_across_the_beam() -> None:
    field = torch.randn(12, 2, 200, 200, generator=torch.Generator().manual_seed(0))
    strength = 0.8
    decibel = Ultrasound(speckle=strength)._speckle(field, torch.ones(12)).squeeze(1).numpy()
    power = 10 ** (decibel / 10)
    # Power of 1 + s z, z complex normal: a noncentral chi-square of two degrees, scaled by s^2 / 2 and the mean.
    expected = stats.ncx2(2, 2 / strength**2, scale=strength**2 / 2 / (1 + strength**2))
    assert power.mean() == pytest.approx(expected.mean(), rel=0.02) == pytest.approx(1.0, rel=0.02)
    assert power.var() == pytest.approx(expected.var(), rel=0.06)
    assert np.percentile(power, [10, 50, 90]) == pytest.approx(expected.ppf([0.1, 0.5, 0.9]), rel=0.06)

    def likeness(rows: int, columns: int) -> float:
        moved = np.roll(power, (rows, columns), (1, 2))
        return float(np.corrcoef(power.ravel(), moved.ravel())[0, 1])

    assert likeness(0, 2) > likeness(2, 0) > likeness(8, 0) and abs(likeness(0, 40)) < 0.05


def test_each_view_has_its_own_speckle_and_shadows() -> None:
    speckled = Ultrasound(**STILL, **{**QUIET, "speckle": 1.0})(grey(0.5), [1, 2, 3, 4])
    assert not torch.allclose(speckled[:, 0], speckled[:, 1], atol=0.01)
    image, seeds = grey(0.5, exams=400, views=1, side=24), list(range(400))
    dark = 0.5 - Ultrasound(**STILL, **{**QUIET, "shadow": 0.3})(image, seeds)
    shaded = dark.amax((1, 2, 3, 4)) > 0.005
    assert 0.2 < shaded.float().mean() < 0.4, "as many views as asked"
    assert dark.min() >= -1e-6 and dark.max() <= 15 / 60 + 1e-6
    assert (dark[shaded][..., 0, :].amax(-1) < 0.1 * dark[shaded].amax((2, 3, 4))).float().mean() > 0.8, "from below"


def test_another_view_does_not_change_the_others() -> None:
    image = torch.rand(2, 3, 1, 32, 32)
    for augment in (Ultrasound(shadow=0.5, flip=0.5), Crop(flip=0.5)):
        assert torch.allclose(augment(image, [5, 6])[:, :2], augment(image[:, :2], [5, 6]), atol=1e-6)


def test_a_crop_is_an_enlarged_part_of_the_image() -> None:
    image = torch.rand(1, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    image = F.avg_pool2d(image[0], 5, 1, 2)[None]
    for seed in range(20):
        found = Crop(share=0.5)(image, [seed])[0, 0, 0]
        draws = torch.rand(1, 3, generator=torch.Generator().manual_seed(seed))[0]
        left, top = (float(draw) * 32 for draw in draws[:2])  # of the 32 pixels that a half leaves free
        rows, columns = (np.clip(start + (np.arange(64) + 0.5) / 2 - 0.5, 0, 63) for start in (top, left))
        low, across = np.floor(rows).astype(int), np.floor(columns).astype(int)
        one, other = (rows - low)[:, None], (columns - across)[None]
        pixels = image[0, 0, 0].numpy()
        below, beside = np.minimum(low + 1, 63), np.minimum(across + 1, 63)
        expected = (
            pixels[np.ix_(low, across)] * (1 - one) * (1 - other)
            + pixels[np.ix_(below, across)] * one * (1 - other)
            + pixels[np.ix_(low, beside)] * (1 - one) * other
            + pixels[np.ix_(below, beside)] * one * other
        )
        assert np.allclose(found.numpy(), expected, atol=1e-4)


def test_a_full_crop_is_the_image_and_each_view_is_mirrored_separately() -> None:
    image = torch.rand(50, 2, 1, 16, 16)
    assert torch.allclose(Crop(share=1.0)(image, list(range(50))), image, atol=1e-5)
    found = Crop(share=1.0, flip=0.5)(image, list(range(50)))
    mirrored = torch.isclose(found, image.flip(-1), atol=1e-5).flatten(2).all(2)
    same = torch.isclose(found, image, atol=1e-5).flatten(2).all(2)
    assert bool((mirrored ^ same).all()) and 0.3 < mirrored.float().mean() < 0.7
    assert bool((mirrored[:, 0] != mirrored[:, 1]).any())
    with problem("out-of-range", place="data.augment.share"):
        Crop(share=0.0)


def test_a_missing_kornia_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia.filters", None)
    with problem("missing-package", place="data.augment"):
        Ultrasound()


class Mirrors:
    """Mirrors half of the exams without declaring it."""

    def __call__(self, image: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        return torch.stack([one.flip(-1) if seed % 2 else one for one, seed in zip(image, seeds)])


class Turns:
    """Turns exams upside down, which leaves a left a left."""

    def __call__(self, image: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        return torch.stack([one.flip(-1, -2) if seed % 2 else one for one, seed in zip(image, seeds)])


class Declared(Mirrors):
    mirrors = ("flip",)


def test_the_contract_finds_an_undeclared_flip() -> None:
    # word for word: the message of a contract
    with pytest.raises(ContractError, match=r"(?s)a flip makes left right.*24 of 48 images are mirrored"):
        check_augment(Mirrors)
    check_augment(Turns)
    check_augment(Declared)
