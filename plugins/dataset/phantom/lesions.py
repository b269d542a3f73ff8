"""Paints a lesion into a scene: a star-shaped body in three dimensions, of which a view shows one section."""

from __future__ import annotations

import numpy as np

from .simulate import Scene
from .truth import Lesion

# dB against the gland around, at the default difficulty.
CONTRAST_DB = {"anechoic": -42.0, "hypoechoic": -13.0, "isoechoic": 0.0, "hyperechoic": 10.5, "mixed": -5.0}
SPREAD_DB = {"anechoic": 2.0, "hypoechoic": 2.5, "isoechoic": 1.0, "hyperechoic": 1.5, "mixed": 2.0}
POSTERIOR_DB = {"none": 0.0, "enhancement": -9.0, "shadow": 17.0}  # loss on the way through
EDGE = {"circumscribed": 0.035, "lobulated": 0.05, "spiculated": 0.10, "indistinct": 0.22}  # softness, in radii


def surface(lesion: Lesion, plane: int, angles: np.ndarray) -> np.ndarray:
    """Radius over the ellipsoid's, by angle in the plane (0: across, 1: along). Bumps on a sphere, cut by the plane."""
    rng = np.random.default_rng(lesion.form)
    radius = np.ones_like(angles)
    direction = np.stack([np.cos(angles) * (plane == 0), np.cos(angles) * (plane == 1), np.sin(angles)], axis=-1)

    def bumps(count: int, sharpness: float, low: float, high: float) -> np.ndarray:
        toward = rng.standard_normal((count, 3))
        toward /= np.linalg.norm(toward, axis=1, keepdims=True)
        height = rng.uniform(low, high, count)
        return np.exp(sharpness * (direction @ toward.T - 1)) @ height

    radius += bumps(4, 3.0, -0.07, 0.07)
    if lesion.shape == "irregular":
        radius += bumps(9, 6.0, -0.42, 0.42)
    if lesion.margin == "lobulated":
        radius += bumps(26, 22.0, 0.12, 0.28) - 0.08
    if lesion.margin == "spiculated":
        radius += bumps(46, 90.0, 0.35, 0.85) - 0.08
    return np.clip(radius, 0.45, 1.9)


def paint_lesion(
    scene: Scene, lesion: Lesion, plane: int, centre: tuple[float, float], base_db: float, difficulty: float
) -> None:
    """Adds the section of `lesion` through `centre` (x, z in mm) and marks it in `scene.lesion`.

    `base_db` is the echo of the tissue around it, which the lesion's own is measured against.
    """
    half = (lesion.width_mm / 2 if plane == 0 else lesion.length_mm / 2, lesion.height_mm / 2)
    across, deep = (scene.x - centre[0]) / half[0], (scene.z - centre[1]) / half[1]
    angles = np.linspace(-np.pi, np.pi, 361)
    reach = np.interp(np.arctan2(deep, across), angles, surface(lesion, plane, angles)).astype(np.float32)
    radius = np.hypot(across, deep) / reach
    ragged = scene.texture(24, 24) * EDGE[lesion.margin] * 0.5
    cover = 1 / (1 + np.exp(np.clip((radius + ragged - 1) / EDGE[lesion.margin] * 2, -30, 30)))
    clear = 1.25 - 0.5 * difficulty
    level = base_db + CONTRAST_DB[lesion.echogenicity] * clear + SPREAD_DB[lesion.echogenicity] * lesion.contrast

    if lesion.margin == "spiculated":  # the bright, stiff rim that tumours draw together around them
        scene.echo_db += 5 * np.exp(-(((radius - 1.15) / 0.18) ** 2))
    inside: np.ndarray | float = level
    if lesion.echogenicity != "anechoic":
        inside = level + scene.texture(14, 14) * (2.2 if lesion.shape == "irregular" else 1.2)
    if lesion.echogenicity == "mixed":
        inside = inside + (CONTRAST_DB["anechoic"] - level) * _pockets(lesion, plane, across, deep)
    scene.paint(cover, inside, loss=POSTERIOR_DB[lesion.posterior] / lesion.height_mm)
    size = half[1] * np.abs(radius - 1)
    if lesion.echogenicity == "isoechoic":  # seen by its halo alone
        scene.echo_db -= 13 * clear * np.exp(-(((radius - 0.97) / 0.09) ** 2))
    elif lesion.margin == "circumscribed":
        # An interface shines where the beam meets it square.
        scene.interface(size + 3.0 * (1 - np.abs(deep).clip(0, 1)) ** 2, 0.006 * scene.probe.field_mm, 4.0, mirror=0.3)
    if lesion.calcification:
        _calcify(scene, lesion, half, centre)
    scene.lesion |= radius < 1


def _pockets(lesion: Lesion, plane: int, across: np.ndarray, deep: np.ndarray) -> np.ndarray:
    """Cover, 0 to 1, of the fluid in a lesion that is part solid: balls inside it, cut by the plane."""
    rng = np.random.default_rng([lesion.form, 2])
    cover = np.zeros_like(across)
    for turn in rng.uniform(0, 2 * np.pi) + np.array([0, 1.3, 2.9, 4.6]):  # apart, to leave walls between them
        reach, off, radius = rng.uniform(0.42, 0.58), rng.uniform(-0.15, 0.15), rng.uniform(0.18, 0.38)
        stretch = rng.uniform(0.8, 1.4)
        distance = np.hypot((across - reach * np.cos(turn)) / stretch, deep - reach * np.sin(turn))
        shown = np.sqrt(max(radius**2 - (off + 0.1 * plane) ** 2, 0.0))
        if shown > 0.1:
            cover = np.maximum(cover, 1 / (1 + np.exp(np.clip((distance - shown) / 0.035, -30, 30))))
    return cover


def _calcify(scene: Scene, lesion: Lesion, half: tuple[float, float], centre: tuple[float, float]) -> None:
    """Bright points inside, each with a thin shadow."""
    rng = np.random.default_rng([lesion.form, 1])
    grain = 1.1 * scene.probe.pixel_mm
    for _ in range(int(rng.integers(5, 10))):
        angle, reach = rng.uniform(0, 2 * np.pi), 0.65 * np.sqrt(rng.random())
        distance = np.hypot(
            scene.x - (centre[0] + half[0] * reach * np.cos(angle)),
            scene.z - (centre[1] + half[1] * reach * np.sin(angle)),
        )
        spot = np.exp(-((distance / grain) ** 2))
        scene.echo_db += np.clip(19.0 - scene.echo_db, 0, None) * spot
        scene.mirror = np.maximum(scene.mirror, 0.9 * spot)
        scene.loss += spot * 4.0 / (2 * grain)
