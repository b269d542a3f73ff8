"""What differs between two scans of the same tissue: the machine's settings, the probe's place, speckle and shadows.

Shapes: B batch, V views, M = B * V views in a row, C channels, H W image, K knots; the first row is at the probe.
"""

from __future__ import annotations

import importlib
import math

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from framework.registry import register
from framework.registry.types import Fraction

KNOTS = 8  # sliders of a machine's time-gain compensation
TOE = 0.06  # grey level below which a change of brightness fades out, so that black stays black [share of white]
GRAIN = (0.6, 1.2)  # speckle's spread along and across the beam, as the point-spread function's [% of the side]
SHADOW_WIDTH = (0.05, 0.25)  # [share of the width]
SHADOW_TOP = (0.15, 0.6)  # where a shadow may begin [share of the height]
EDGE = 0.08  # over which a shadow fades in and out [share of the side]
SETTINGS, PLACES = 4 + KNOTS, 9  # random numbers of an exam, and of each view


@register("augment", "ultrasound")
class Ultrasound:
    """Gain, time-gain compensation, attenuation, speckle, shadows, and the probe's place; mirrors only where told to.

    An image in B-mode is the logarithm of the echo's amplitude: a grey level is (dB + range) / range, with 0 dB at
    white. What multiplies the amplitude therefore adds to the grey level, and is given here in decibels.

    One draw an exam, for what its views share: gain, time-gain compensation (knobs of the machine), attenuation (the
    patient's tissue), scale (the depth that was chosen), mirroring. One draw a view, for what each has of its own: the
    probe's shift and turn, speckle (which changes with any move of the probe), shadow. Depth counts from the frame's
    top, and shadows fall straight down, as under a linear probe; in a sector they would follow its lines.

    Source:
        Logarithmic compression and time-gain compensation: Szabo 2014, Diagnostic Ultrasound Imaging, 2nd edition,
        chapters 4 and 10. Attenuation in proportion to depth: the same, chapter 4. Speckle as the modulus of a
        correlated complex Gaussian field, added to the echo (Rayleigh alone, Rician beside it): Wagner, Smith, Sandrik,
        Lopez 1983, IEEE Trans. Sonics and Ultrasonics 30, 156-163. The mixture of these for training: Sonoscribe.

    Args:
        gain: Largest change of gain. [dB]
        tgc: Largest change of any of the eight sliders of time-gain compensation. [dB]
        attenuation: Largest change at the bottom, growing evenly with depth. [dB]
        speckle: Largest amplitude of added speckle; 1: as strong as the echo itself. [share of the echo's amplitude]
        shadow: How many views have a shadow thrown on them. [share of views]
        shadow_depth: Largest loss in a shadow. [dB]
        shift: Largest shift. [share of the image]
        scale: Largest change of scale. [share]
        degrees: Largest turn. [degrees]
        flip: How many exams are mirrored left to right. Only for reports that name no side: a mirrored left is a right.
            [share of exams]
        dynamic_range: Between black and white; machines show 50 to 70. [dB]
    """

    mirrors = ("flip",)

    def __init__(
        self,
        *,
        gain: NonNegativeFloat = 4.0,
        tgc: NonNegativeFloat = 3.0,
        attenuation: NonNegativeFloat = 4.0,
        speckle: Fraction = 0.25,
        shadow: Fraction = 0.15,
        shadow_depth: NonNegativeFloat = 15.0,
        shift: Fraction = 0.05,
        scale: Fraction = 0.05,
        degrees: NonNegativeFloat = 5.0,
        flip: Fraction = 0.0,
        dynamic_range: PositiveFloat = 60.0,
    ) -> None:
        try:
            self.blur = importlib.import_module("kornia.filters").gaussian_blur2d
        except ImportError:
            raise ValueError(
                "data.augment 'ultrasound' needs the package kornia: pip install 'sonoscribe[augment]'"
            ) from None
        self.gain, self.tgc, self.attenuation = gain, tgc, attenuation
        self.speckle, self.shadow, self.shadow_depth = speckle, shadow, shadow_depth
        self.shift, self.scale, self.radians, self.flip = shift, scale, math.radians(degrees), flip
        self.range = dynamic_range

    def __call__(self, image_BVCHW: Tensor, seeds: list[int]) -> Tensor:
        """All is drawn from an exam's seed, for its views in their order: a view more changes nothing in the others.

        Numbers are drawn on the CPU, so that they are the same whatever the device; what they do is done on the device.
        """
        batch, views = image_BVCHW.shape[:2]
        size = image_BVCHW.shape[-2:]
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        exam_BS = torch.stack([torch.rand(SETTINGS, generator=source) for source in sources])
        drawn = [[_view(source, size, self.speckle > 0) for _ in range(views)] for source in sources]
        device = image_BVCHW.device
        exam_MS = exam_BS.repeat_interleave(views, dim=0).to(device)
        view_MP = torch.stack([place for each in drawn for place, _ in each]).to(device)
        flat = self._move(image_BVCHW.flatten(0, 1), exam_MS, view_MP)
        decibel_M1HW = self._depth_gain(exam_MS, size) - self._shadow(view_MP, size)
        if self.speckle:
            field_M2HW = torch.stack([field for each in drawn for _, field in each]).to(device)
            decibel_M1HW = decibel_M1HW + self._speckle(field_M2HW, view_MP[:, 3])
        # What lies near black is noise or lies outside of the scan area: there is no echo to amplify.
        echo = (flat / TOE).clamp(0, 1)
        return (flat + echo * (decibel_M1HW / self.range)).clamp(0, 1).to(flat.dtype).unflatten(0, (batch, views))

    def _move(self, flat_MCHW: Tensor, exam_MS: Tensor, view_MP: Tensor) -> Tensor:
        scale = 1 + self.scale * _signed(exam_MS[:, 0])
        mirror = torch.where(exam_MS[:, 1] < self.flip, -1.0, 1.0)
        angle = self.radians * _signed(view_MP[:, 0])
        dx, dy = 2 * self.shift * _signed(view_MP[:, 1]), 2 * self.shift * _signed(view_MP[:, 2])
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        turn_M23 = torch.stack([torch.stack([cos * mirror, -sin, dx], 1), torch.stack([sin * mirror, cos, dy], 1)], 1)
        grid = F.affine_grid(turn_M23.to(flat_MCHW.dtype), list(flat_MCHW.shape), align_corners=False)
        return F.grid_sample(flat_MCHW, grid, align_corners=False)

    def _depth_gain(self, exam_MS: Tensor, size: torch.Size) -> Tensor:
        """Gain, its compensation over depth, and attenuation, [M, 1, H, 1] in dB."""
        depth_H = torch.linspace(0, 1, size[0], device=exam_MS.device)
        knots_M1K = (self.tgc * _signed(exam_MS[:, 4:])).unsqueeze(1)
        curve_MH = F.interpolate(knots_M1K, size=size[0], mode="linear", align_corners=True).squeeze(1)
        even_M1 = self.gain * _signed(exam_MS[:, 2:3])
        loss_MH = self.attenuation * _signed(exam_MS[:, 3:4]) * depth_H
        return (even_M1 + curve_MH - loss_MH)[:, None, :, None]

    def _shadow(self, view_MP: Tensor, size: torch.Size) -> Tensor:
        """The loss in a soft band that begins at some depth, [M, 1, H, W] in dB; 0 in a view without one."""
        there_M, column_M, width_M, top_M, loss_M = view_MP[:, 4:].unbind(1)
        loss_M = torch.where(there_M < self.shadow, self.shadow_depth * (0.3 + 0.7 * loss_M), 0.0)
        half_M, top_M = _between(SHADOW_WIDTH, width_M) / 2, _between(SHADOW_TOP, top_M)
        down_H, across_W = (torch.linspace(0, 1, side, device=view_MP.device) for side in size)
        inside_MW = torch.sigmoid((half_M[:, None] - (across_W - column_M[:, None]).abs()) * (4 / EDGE))
        below_MH = torch.sigmoid((down_H - top_M[:, None]) * (4 / EDGE))
        return (loss_M[:, None, None] * below_MH[:, :, None] * inside_MW[:, None, :]).unsqueeze(1)

    def _speckle(self, field_M2HW: Tensor, strength_M: Tensor) -> Tensor:
        """Scatterers added to an echo of 1, its mean power kept, [M, 1, H, W] in dB."""
        spread = [max(0.3, share / 100 * side) for share, side in zip(GRAIN, field_M2HW.shape[-2:])]
        reach = [2 * math.ceil(3 * sigma) + 1 for sigma in spread]
        grain_M2HW = self.blur(field_M2HW, tuple(reach), tuple(spread))
        power_M111 = grain_M2HW.square().sum(1, keepdim=True).mean((2, 3), keepdim=True)
        strength_M111 = (self.speckle * strength_M).view(-1, 1, 1, 1)
        added_M2HW = grain_M2HW / power_M111.sqrt() * strength_M111
        real_M1HW, imaginary_M1HW = 1 + added_M2HW[:, :1], added_M2HW[:, 1:]
        echo_M1HW = (real_M1HW.square() + imaginary_M1HW.square()) / (1 + strength_M111.square())
        return 10 * torch.log10(echo_M1HW.clamp(min=10 ** (-self.range / 10)))


def _view(source: torch.Generator, size: torch.Size, speckled: bool) -> tuple[Tensor, Tensor]:
    """A view's own numbers, and the field that its speckle grows from."""
    return torch.rand(PLACES, generator=source), torch.randn(2, *size, generator=source) if speckled else torch.empty(0)


def _signed(draws: Tensor) -> Tensor:
    return 2 * draws - 1


def _between(ends: tuple[float, float], draws: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * draws
