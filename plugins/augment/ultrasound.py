"""Differences between two scans of the same tissue: machine settings, probe position, speckle and shadows.

Shapes: B batch, V views, M = B * V views, C channels, H W image, K knots; the first row is at the probe.
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
from framework.runtime.errors import UserError

KNOTS = 8  # sliders of time-gain compensation
TOE = 0.06  # grey level below which a change of brightness fades out, so that black stays black [share of white]
GRAIN = (0.6, 1.2)  # standard deviation of the point-spread function along and across the beam [% of the side]
SHADOW_WIDTH = (0.05, 0.25)  # [share of the width]
SHADOW_TOP = (0.15, 0.6)  # depth at which a shadow starts [share of the height]
EDGE = 0.08  # width of a shadow's soft edge [share of the side]
EXAM_DRAWS, VIEW_DRAWS = 4 + KNOTS, 9  # random numbers per exam and per view


@register("augment", "ultrasound")
class Ultrasound:
    """Gain, time-gain compensation, attenuation, speckle, shadows and probe position; flips only if `flip` is above 0.

    A B-mode image shows the logarithm of the echo amplitude: the grey level is (dB + range) / range, with 0 dB at
    white. Factors of the amplitude are therefore added to the grey level, and are given in decibels.

    The views of an exam share gain, time-gain compensation, attenuation (the patient's tissue), scale (the chosen
    depth) and flip. Shift, rotation, speckle and shadow are drawn for each view. Depth is measured from the top of the
    frame, and shadows are vertical, as under a linear probe; in a sector they would follow its lines.

    Source:
        Logarithmic compression and time-gain compensation: Szabo 2014, Diagnostic Ultrasound Imaging, 2nd edition,
        chapters 4 and 10. Attenuation in proportion to depth: the same, chapter 4. Speckle as the modulus of a
        correlated complex Gaussian field, added to the echo (Rayleigh, or Rician with an echo): Wagner, Smith, Sandrik,
        Lopez 1983, IEEE Trans. Sonics and Ultrasonics 30, 156-163. Their combination for training: Sonoscribe.

    Args:
        gain: Maximum change of gain. [dB]
        tgc: Maximum change of each of the eight sliders of time-gain compensation. [dB]
        attenuation: Maximum change at the bottom, growing linearly with depth. [dB]
        speckle: Maximum amplitude of added speckle; 1 equals the echo. [share of the echo's amplitude]
        shadow: Probability of a shadow. [share of views]
        shadow_depth: Maximum loss in a shadow. [dB]
        shift: Maximum shift. [share of the image]
        scale: Maximum change of scale. [share]
        degrees: Maximum rotation. [degrees]
        flip: Probability of a horizontal flip. Only for reports that name no side: a flip makes left right.
            [share of exams]
        dynamic_range: Range between black and white; machines show 50 to 70. [dB]
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
            raise UserError(
                "missing-package",
                "'ultrasound' needs the package kornia",
                place="data.augment",
                hint="Run: pip install 'sonoscribe[augment]'",
            ) from None
        self.gain, self.tgc, self.attenuation = gain, tgc, attenuation
        self.speckle, self.shadow, self.shadow_depth = speckle, shadow, shadow_depth
        self.shift, self.scale, self.radians, self.flip = shift, scale, math.radians(degrees), flip
        self.range = dynamic_range

    def __call__(self, image_BVCHW: Tensor, seeds: list[int]) -> Tensor:
        """Draws all random numbers from the exam's seed, view by view, so that adding a view does not change others.

        Numbers are drawn on the CPU, so that they do not depend on the device; images are changed on their device.
        """
        batch, views = image_BVCHW.shape[:2]
        size = image_BVCHW.shape[-2:]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        exam_BS = torch.stack([torch.rand(EXAM_DRAWS, generator=generator) for generator in generators])
        drawn = [[_draw_view(generator, size, self.speckle > 0) for _ in range(views)] for generator in generators]
        device = image_BVCHW.device
        exam_MS = exam_BS.repeat_interleave(views, dim=0).to(device, non_blocking=True)
        view_MP = torch.stack([place for each in drawn for place, _ in each]).to(device, non_blocking=True)
        flat = self._move(image_BVCHW.flatten(0, 1), exam_MS, view_MP)
        decibel_M1HW = self._depth_gain(exam_MS, size) - self._shadow(view_MP, size)
        if self.speckle:
            field_M2HW = torch.stack([field for each in drawn for _, field in each]).to(device, non_blocking=True)
            decibel_M1HW = decibel_M1HW + self._speckle(field_M2HW, view_MP[:, 3])
        # Near black there is noise, or the outside of the scan area: no echo to amplify.
        echo = (flat / TOE).clamp(0, 1)
        return (flat + echo * (decibel_M1HW / self.range)).clamp(0, 1).to(flat.dtype).unflatten(0, (batch, views))

    def _move(self, flat_MCHW: Tensor, exam_MS: Tensor, view_MP: Tensor) -> Tensor:
        scale = 1 + self.scale * _signed(exam_MS[:, 0])
        flip = torch.where(exam_MS[:, 1] < self.flip, -1.0, 1.0)
        angle = self.radians * _signed(view_MP[:, 0])
        dx, dy = 2 * self.shift * _signed(view_MP[:, 1]), 2 * self.shift * _signed(view_MP[:, 2])
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        affine_M23 = torch.stack([torch.stack([cos * flip, -sin, dx], 1), torch.stack([sin * flip, cos, dy], 1)], 1)
        grid = F.affine_grid(affine_M23.to(flat_MCHW.dtype), list(flat_MCHW.shape), align_corners=False)
        return F.grid_sample(flat_MCHW, grid, align_corners=False)

    def _depth_gain(self, exam_MS: Tensor, size: torch.Size) -> Tensor:
        """Gain, time-gain compensation and attenuation, [M, 1, H, 1] in dB."""
        depth_H = torch.linspace(0, 1, size[0], device=exam_MS.device)
        knots_M1K = (self.tgc * _signed(exam_MS[:, 4:])).unsqueeze(1)
        curve_MH = F.interpolate(knots_M1K, size=size[0], mode="linear", align_corners=True).squeeze(1)
        gain_M1 = self.gain * _signed(exam_MS[:, 2:3])
        loss_MH = self.attenuation * _signed(exam_MS[:, 3:4]) * depth_H
        return (gain_M1 + curve_MH - loss_MH)[:, None, :, None]

    def _shadow(self, view_MP: Tensor, size: torch.Size) -> Tensor:
        """Loss in a soft vertical band below some depth, [M, 1, H, W] in dB; 0 in a view without a shadow."""
        there_M, column_M, width_M, top_M, loss_M = view_MP[:, 4:].unbind(1)
        loss_M = torch.where(there_M < self.shadow, self.shadow_depth * (0.3 + 0.7 * loss_M), 0.0)
        half_M, top_M = _between(SHADOW_WIDTH, width_M) / 2, _between(SHADOW_TOP, top_M)
        down_H, across_W = (torch.linspace(0, 1, side, device=view_MP.device) for side in size)
        inside_MW = torch.sigmoid((half_M[:, None] - (across_W - column_M[:, None]).abs()) * (4 / EDGE))
        below_MH = torch.sigmoid((down_H - top_M[:, None]) * (4 / EDGE))
        return (loss_M[:, None, None] * below_MH[:, :, None] * inside_MW[:, None, :]).unsqueeze(1)

    def _speckle(self, field_M2HW: Tensor, strength_M: Tensor) -> Tensor:
        """Scatterers added to an echo of 1 at constant mean power, [M, 1, H, W] in dB."""
        sigmas = [max(0.3, share / 100 * side) for share, side in zip(GRAIN, field_M2HW.shape[-2:])]
        kernel = [2 * math.ceil(3 * sigma) + 1 for sigma in sigmas]
        grain_M2HW = self.blur(field_M2HW, tuple(kernel), tuple(sigmas))
        power_M111 = grain_M2HW.square().sum(1, keepdim=True).mean((2, 3), keepdim=True)
        strength_M111 = (self.speckle * strength_M).view(-1, 1, 1, 1)
        added_M2HW = grain_M2HW / power_M111.sqrt() * strength_M111
        real_M1HW, imaginary_M1HW = 1 + added_M2HW[:, :1], added_M2HW[:, 1:]
        echo_M1HW = (real_M1HW.square() + imaginary_M1HW.square()) / (1 + strength_M111.square())
        return 10 * torch.log10(echo_M1HW.clamp(min=10 ** (-self.range / 10)))


def _draw_view(generator: torch.Generator, size: torch.Size, speckle: bool) -> tuple[Tensor, Tensor]:
    """Random numbers of a view, and the white noise of its speckle."""
    numbers = torch.rand(VIEW_DRAWS, generator=generator)
    return numbers, torch.randn(2, *size, generator=generator) if speckle else torch.empty(0)


def _signed(draws: Tensor) -> Tensor:
    return 2 * draws - 1


def _between(ends: tuple[float, float], draws: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * draws
