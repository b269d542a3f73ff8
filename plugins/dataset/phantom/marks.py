"""Draws annotations beside the scan: body mark with probe, side, and depth scale."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .simulate import Probe

LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "left": [[(0, 0), (0, 1), (0.7, 1)]],
    "right": [[(0, 1), (0, 0), (0.7, 0), (0.7, 0.45), (0, 0.45)], [(0.3, 0.45), (0.75, 1)]],
}


def draw_marks(
    image: np.ndarray, probe: Probe, organ: str, side: str | None, place: str | None, clock: int | None, plane: int
) -> np.ndarray:
    """The image (uint8 H x W) with its marks, under the scan and at its right edge."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    size = probe.size
    stroke = max(1, round(size / 110))
    box = (0.03 * size, 0.855 * size, 0.40 * size, 0.98 * size)
    centre, turn = _outline(pen, organ, box, side, place, clock, stroke)
    _bar(pen, centre, turn + (np.pi / 2 if plane == 1 else 0), 0.055 * size, stroke + 1)
    if side:
        height, left = 0.105 * size, 0.47 * size
        for path in LETTERS[side]:
            pen.line([(left + x * height, 0.865 * size + y * height) for x, y in path], fill=235, width=stroke + 1)
    step_mm = 10 if probe.field_mm < 100 else 20
    for tick in np.arange(0, probe.depth_mm + 0.1, step_mm):
        row = probe.top + tick / probe.pixel_mm
        pen.line([(size - 1 - 0.02 * size, row), (size - 1, row)], fill=170, width=1)
    return np.asarray(canvas)


def _bar(pen: ImageDraw.ImageDraw, centre: tuple[float, float], turn: float, length: float, width: int) -> None:
    """The probe: a bright bar. 0 lies across the body, pi / 2 along it."""
    dx, dy = length / 2 * np.cos(turn), length / 2 * np.sin(turn)
    pen.line([(centre[0] - dx, centre[1] - dy), (centre[0] + dx, centre[1] + dy)], fill=255, width=width)


def _outline(
    pen: ImageDraw.ImageDraw,
    organ: str,
    box: tuple[float, float, float, float],
    side: str | None,
    place: str | None,
    clock: int | None,
    stroke: int,
) -> tuple[tuple[float, float], float]:
    """Draws the organ seen from the front and gives the probe's place and the angle it lies at across it."""
    left, top, right, bottom = box
    middle, height = (left + right) / 2, bottom - top
    sign = {"right": -1, "left": 1, None: 0}[side]  # the patient's right is the viewer's left
    if organ == "breast":
        radius = height / 2
        for other in (-1, 1):
            x = middle + other * 1.25 * radius
            shade = 150 if other == sign else 70
            pen.ellipse((x - radius, top, x + radius, bottom), outline=shade, width=stroke)
        at = (middle + sign * 1.25 * radius, (top + bottom) / 2)
        if clock is None:
            return at, 0.0
        turn = np.pi * (clock / 6 - 0.5)
        return (at[0] + 0.62 * radius * np.cos(turn), at[1] + 0.62 * radius * np.sin(turn)), turn
    if organ == "thyroid":
        for other in (-1, 1):
            x = middle + other * 0.5 * height
            shade = 150 if other == sign else 70
            pen.ellipse((x - 0.24 * height, top, x + 0.24 * height, bottom), outline=shade, width=stroke)
        low = bottom - 0.3 * height
        pen.line([(middle - 0.3 * height, low), (middle + 0.3 * height, low)], fill=110, width=stroke)
        if sign == 0:
            return (middle, low), 0.0
        row = {"upper pole": 0.2, "lower pole": 0.8}.get(place or "", 0.5)
        return (middle + sign * 0.5 * height, top + row * height), 0.0
    shape = [(left + 0.1 * height, top + 0.2 * height), (middle, top + 0.05 * height), (right - 0.3 * height, top)]
    shape += [(right - 0.6 * height, top + 0.45 * height), (middle - 0.3 * height, bottom), (left, bottom)]
    pen.line([*shape, shape[0]], fill=110, width=stroke)
    return (middle + sign * 0.65 * height, top + (0.5 if sign < 0 else 0.25) * height), 0.0
