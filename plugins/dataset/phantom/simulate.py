"""B-mode from echogenicity: random scatterers, a beam that widens away from its focus, loss, noise, compression.

The carrier is taken out beforehand: a scatterer's place within a wavelength is a random phase, so the demodulated
(complex) field is drawn and filtered by the pulse's envelope, which gives the same speckle as radio-frequency data
(Wagner et al., Statistics of speckle in ultrasound B-scans, 1983) on a grid four times as coarse.

Shapes: D samples in the depth, twice as many as pixels; L scan lines; H W the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates

from .truth import Setup

OVERSAMPLE = 2  # samples in the depth for one pixel: the pulse is shorter than a pixel is high


@dataclass(frozen=True)
class Probe:
    """Where the scan lines of an image run. Linear (parallel lines) or curved (lines from an arc)."""

    size: int  # pixels of the square image
    field_mm: float  # what `size` pixels span
    curved: bool

    @property
    def pixel_mm(self) -> float:
        return self.field_mm / self.size

    @property
    def top(self) -> int:
        """First row of the scan; the rows under the scan are left for the body mark."""
        return round(0.02 * self.size)

    @property
    def rows(self) -> int:
        return round((0.76 if self.curved else 0.82) * self.size)

    @property
    def lines(self) -> int:
        return self.size if self.curved else round(0.9 * self.size)

    @property
    def depth_mm(self) -> float:
        return self.rows * self.pixel_mm

    @property
    def radius_mm(self) -> float:
        """Of the curved face."""
        return 0.3 * self.field_mm

    @property
    def half_angle(self) -> float:
        """Radians either side; chosen so that the deepest arc fills the image's width."""
        return float(np.arcsin(0.48 * self.field_mm / (self.radius_mm + self.depth_mm)))

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """x and z in mm of every sample, D x L; z is the depth under the probe's middle."""
        depth = (np.arange(self.rows * OVERSAMPLE, dtype=np.float32) + 0.5) * (self.pixel_mm / OVERSAMPLE)
        if not self.curved:
            across = (np.arange(self.lines, dtype=np.float32) - (self.lines - 1) / 2) * self.pixel_mm
            z, x = np.meshgrid(depth, across, indexing="ij")
            return x, z
        angle = np.linspace(-self.half_angle, self.half_angle, self.lines, dtype=np.float32)
        distance = self.radius_mm + depth[:, None]
        return distance * np.sin(angle), distance * np.cos(angle) - self.radius_mm

    def to_image(self, lines: np.ndarray) -> np.ndarray:
        """Scan lines, (D / OVERSAMPLE) x L, onto the square image, H x W; zero outside the scan."""
        image = np.zeros((self.size, self.size), np.float32)
        if self.curved:
            bent = map_coordinates(lines, _bend(self.size, self.curved), order=1, cval=0.0)
            image[self.top :] = bent[: self.size - self.top]
        else:
            left = (self.size - self.lines) // 2
            image[self.top : self.top + self.rows, left : left + self.lines] = lines
        return image


@lru_cache(maxsize=4)
def _bend(size: int, curved: bool) -> np.ndarray:
    """For each pixel the sample (row, line) of a curved scan; independent of the field, which only scales."""
    probe = Probe(size, 1.0, curved)
    column = (np.arange(size) - (size - 1) / 2) * probe.pixel_mm
    row = (np.arange(size) + 0.5) * probe.pixel_mm
    z, x = np.meshgrid(row + probe.radius_mm * np.cos(probe.half_angle), column, indexing="ij")
    depth = (np.hypot(x, z) - probe.radius_mm) / probe.pixel_mm - 0.5
    line = (np.arctan2(x, z) / probe.half_angle + 1) * (probe.lines - 1) / 2
    outside = (depth < 0) | (depth > probe.rows - 1)
    depth[outside] = -10.0  # lands on the constant border instead of on a stretched edge
    return np.stack([depth, line]).astype(np.float32)


@lru_cache(maxsize=64)
def _spline(samples: int, cells: int) -> np.ndarray:
    """Uniform cubic B-splines, samples x (cells + 3): smooth random curves are this times white noise."""
    place = np.linspace(0, cells, samples, dtype=np.float32)[:, None] - np.arange(-1, cells + 2, dtype=np.float32)
    near = np.abs(place)
    inner, outer = 2 / 3 - near**2 + near**3 / 2, np.clip(2 - near, 0, None) ** 3 / 6
    return np.where(near < 1, inner, outer).astype(np.float32)


@dataclass
class Scene:
    """Tissue on the samples of a probe, painted layer over layer."""

    probe: Probe
    rng: np.random.Generator
    x: np.ndarray = field(init=False)  # mm, D x L
    z: np.ndarray = field(init=False)
    echo_db: np.ndarray = field(init=False)  # backscatter; 0 is healthy gland
    loss: np.ndarray = field(init=False)  # dB a mm beyond what the time-gain compensation expects
    mirror: np.ndarray = field(init=False)  # 0 diffuse to 1 a smooth interface, which reflects without speckle
    lesion: np.ndarray = field(init=False)  # bool, the known truth

    def __post_init__(self) -> None:
        self.x, self.z = self.probe.coordinates()
        self.echo_db = np.zeros_like(self.x)
        self.loss = np.zeros_like(self.x)
        self.mirror = np.zeros_like(self.x)
        self.lesion = np.zeros(self.x.shape, bool)

    def texture(self, deep: int, across: int) -> np.ndarray:
        """A smooth random field, about unit variance, of so many cells in the depth and across; D x L."""
        down, over = _spline(self.x.shape[0], deep), _spline(self.x.shape[1], across)
        noise = self.rng.standard_normal((deep + 3, across + 3), dtype=np.float32)
        return (down @ noise @ over.T) * 2.1

    def curve(self, amplitude_mm: float, cells: int = 4) -> np.ndarray:
        """A smooth random line over the scan lines, L."""
        return (_spline(self.x.shape[1], cells) @ self.rng.standard_normal(cells + 3, dtype=np.float32)) * amplitude_mm

    def paint(self, where: np.ndarray, echo_db: np.ndarray | float, loss: float | None = None) -> None:
        """Replaces the tissue: `where` is a bool mask or a cover from 0 to 1."""
        cover = where.astype(np.float32) if where.dtype == bool else where
        self.echo_db += (echo_db - self.echo_db) * cover
        self.mirror *= 1 - cover
        if loss is not None:
            self.loss += (loss - self.loss) * cover

    def interface(self, distance_mm: np.ndarray, thickness_mm: float, echo_db: float, mirror: float = 0.45) -> None:
        """A bright line where `distance_mm` is zero, brighter here and fainter there."""
        thin = max(thickness_mm, 0.6 * self.probe.pixel_mm)
        cover = np.exp(-((distance_mm / thin) ** 2))
        level = echo_db + self.curve(1.0, 11) * 3.0  # no interface lies square to the beam all along
        self.echo_db += np.clip(level - self.echo_db, 0, None) * cover
        self.mirror = np.maximum(self.mirror, mirror * cover)


def render(scene: Scene, setup: Setup) -> np.ndarray:
    """Grey values of a scene, float H x W from 0 to 255."""
    rng, shape = scene.rng, scene.x.shape
    step_mm = scene.probe.pixel_mm / OVERSAMPLE
    deep = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None]
    ripple = _spline(shape[0], 5) @ rng.standard_normal(8, dtype=np.float32) * abs(setup.gain_slope_db) * 0.4
    path_db = np.cumsum(scene.loss, axis=0) * step_mm
    amplitude = 10 ** ((scene.echo_db - path_db + setup.gain_slope_db * (deep - 0.4) + ripple[:, None]) / 20)
    field_iq = (rng.standard_normal((2, *shape), dtype=np.float32)) * 0.7071
    field_iq *= amplitude * (1 - scene.mirror)
    field_iq[0] += amplitude * scene.mirror

    pulse = 1.1
    field_iq = gaussian_filter1d(field_iq, pulse, axis=1, truncate=3.0) * _unit_power(pulse)
    field_iq = _beam(field_iq, deep[:, 0], setup.focus)
    noise = rng.standard_normal((2, *shape), dtype=np.float32) * (10 ** ((setup.noise_db + 14 * deep) / 20))
    envelope = np.hypot(*(field_iq + noise))
    envelope = envelope.reshape(shape[0] // OVERSAMPLE, OVERSAMPLE, shape[1]).mean(axis=1)
    level_db = 20 * np.log10(envelope + 1e-6) + setup.gain_db
    # Machines smooth what they show: neighbouring frames and steered beams are averaged.
    grey = gaussian_filter1d(gaussian_filter1d(0.46 + level_db / setup.range_db, 0.55, axis=0), 0.55, axis=1)
    return scene.probe.to_image(np.clip(grey, 0, 1) ** setup.curve * 255)


def _unit_power(width: float) -> float:
    """What a Gaussian blur that sums to one is multiplied by, so that speckle keeps its mean power."""
    return float(np.sqrt(2 * np.sqrt(np.pi) * width))


def _beam(field_iq: np.ndarray, deep: np.ndarray, focus: float) -> np.ndarray:
    """Blurs across the lines, wider away from the focus: two widths, blended by depth so that powers add up."""
    narrow, wide = 0.75, 2.2
    sharp = gaussian_filter1d(field_iq, narrow, axis=2, truncate=3.0) * _unit_power(narrow)
    blurred = gaussian_filter1d(field_iq, wide, axis=2, truncate=2.5) * _unit_power(wide)
    share = np.clip(np.abs(deep - focus) / 0.75, 0, 1)[None, :, None] ** 1.3
    return sharp * (1 - share) + blurred * share
