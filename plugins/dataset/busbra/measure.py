"""Measures of a lesion on a breast image, from the experts' mask and the grey levels.

The archive has no text, so its reports are composed from these numbers (see compose.py). Each one follows a feature of
the ACR BI-RADS ultrasound lexicon (5th edition, 2013) and has no unit: lengths are shares of the frame or of the
lesion, since the archive does not give the size of a pixel; grey values are ratios, since gain differs from scan to
scan.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

VERSION = 1  # part of the cache's name: increase it when a number below changes
REACH = 0.4  # of the ring of tissue around a lesion, in diameters of the lesion
SECTORS = 24  # sectors of the boundary, of which the share with an edge is counted


@dataclass(frozen=True)
class Measures:
    """One view's lesion, or the mean over an exam's views."""

    width: float  # upright box, share of the frame's width
    depth: float  # centre of the lesion, share of the frame's height: 0 at the probe
    offset: float  # distance of the centre from the frame's middle column, share of half the width: 0 to 1
    ratio: float  # height / width of the upright box: above 1 is taller than wide
    elongation: float  # long side / short side of the smallest box in any direction: from 1
    solidity: float  # area / area of the convex hull: 1 has no dents
    roughness: float  # contour length / length of the contour smoothed by a tenth of the lesion: 1 has no teeth
    blur: float  # share of the boundary without a step in grey
    echo: float  # median grey inside / median grey of the tissue beside and above
    fluid: float  # share of the smoothed inside that is nearly black: below 0.3 of the tissue's grey, or 4 levels
    unevenness: float  # spread of the smoothed grey inside / median grey of the tissue
    posterior: float  # log2(grey behind the lesion / grey beside it at the same depth)

    @staticmethod
    def mean(views: list[Measures]) -> Measures:
        """The exam's numbers: the mean of its views, so that no view rules alone."""
        return Measures(*(float(np.mean([getattr(view, f.name) for view in views])) for f in fields(Measures)))


def measure(image_HW: np.ndarray, mask_HW: np.ndarray) -> Measures:
    """Measures the largest component of the mask.

    Args:
        image_HW: grey values, uint8.
        mask_HW: the lesion, bool, of the same size.

    Raises:
        ValueError: sizes differ, or the mask is empty or too small to have a contour (fewer than 30 pixels).
    """
    if image_HW.shape != mask_HW.shape:
        raise ValueError(f"image {image_HW.shape[::-1]} and mask {mask_HW.shape[::-1]} differ in size (width, height)")
    mask = _largest(mask_HW)
    rows, cols = np.nonzero(mask)
    if rows.size < 30:
        raise ValueError(f"the mask holds {rows.size} pixels, too few for a lesion (30)")
    height, width = mask.shape
    top, bottom, left, right = rows.min(), rows.max() + 1, cols.min(), cols.max() + 1
    hull_area, elongation = _hull(rows, cols)
    near = _Near.cut(image_HW, mask)
    echo, fluid, unevenness = _inside(near)
    return Measures(
        width=float((right - left) / width),
        depth=float((rows.mean() + 0.5) / height),
        offset=float(abs(cols.mean() + 0.5 - width / 2) / (width / 2)),
        ratio=float((bottom - top) / (right - left)),
        elongation=elongation,
        solidity=min(1.0, rows.size / hull_area),
        roughness=_roughness(mask),
        blur=_blur(near),
        echo=echo,
        fluid=fluid,
        unevenness=unevenness,
        posterior=_posterior(image_HW, mask),
    )


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _diameter(mask: np.ndarray) -> float:
    """Of the disc of equal area, in pixels."""
    return float(np.sqrt(4 * mask.sum() / np.pi))


def _crop(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, s.start - margin), s.stop + margin) for s in box)  # type: ignore[return-value]


def _hull(rows: np.ndarray, cols: np.ndarray) -> tuple[float, float]:
    """Area of the convex hull of the pixels' squares, and the elongation of the smallest box around it."""
    corner = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    points = (np.stack([rows, cols], 1)[:, None] + corner).reshape(-1, 2)
    # Only the ends of each row can be on the hull: a few hundred points instead of tens of thousands.
    order = np.lexsort((points[:, 1], points[:, 0]))
    points = points[order]
    first = np.flatnonzero(np.r_[True, np.diff(points[:, 0]) != 0])
    last = np.r_[first[1:] - 1, len(points) - 1]
    try:
        hull = ConvexHull(points[np.r_[first, last]])
    except QhullError:
        raise ValueError("the mask is a line, not an area") from None
    corners = hull.points[hull.vertices]
    edge = np.diff(corners, axis=0, append=corners[:1])
    along = edge / np.linalg.norm(edge, axis=1, keepdims=True)
    across = along[:, ::-1] * [1, -1]
    # A smallest box has a side on an edge of the hull (Freeman and Shapira 1975): try them all.
    sides = np.stack([np.ptp(corners @ along.T, axis=0), np.ptp(corners @ across.T, axis=0)])
    sides = sides[:, np.argmin(sides.prod(0))]
    return float(hull.volume), float(sides.max() / sides.min())


def _roughness(mask: np.ndarray) -> float:
    """Length of the fine contour over the length of the coarse one.

    The length of a contour at a scale is the total variation of the mask blurred by that scale (the coarea formula), so
    no contour has to be traced.
    """
    coarse = max(2.0, 0.1 * _diameter(mask))
    shape = mask[_crop(mask, 0)].astype(np.float32)

    def length(scale: float) -> float:
        step = max(1, int(scale / 3))  # a coarse contour needs few pixels: this is most of the time saved
        margin = int(3 * scale) + 2
        padded = np.pad(shape, [(margin, margin + -(side + 2 * margin) % step) for side in shape.shape])
        rows, cols = (side // step for side in padded.shape)
        small = padded.reshape(rows, step, cols, step).mean((1, 3))
        blurred = ndimage.gaussian_filter(small, scale / step, truncate=3)
        return step * float(np.hypot(*np.gradient(blurred)).sum())

    return length(1.0) / length(coarse)


@dataclass(frozen=True)
class _Near:
    """The lesion and the tissue around it, cut out of the frame."""

    grey: np.ndarray  # float32
    inside: np.ndarray  # bool
    depth: np.ndarray  # distance to the boundary in diameters: above 0 inside, below 0 outside
    size: float  # diameter in pixels

    @staticmethod
    def cut(image: np.ndarray, mask: np.ndarray) -> _Near:
        size = _diameter(mask)
        crop = _crop(mask, int(REACH * size) + 2)
        inside = mask[crop]
        depth = -ndimage.distance_transform_edt(~inside)
        box = _crop(inside, 1)
        depth[box] += ndimage.distance_transform_edt(np.pad(inside[box], 1))[1:-1, 1:-1]
        depth /= size
        return _Near(image[crop].astype(np.float32), inside, depth, size)


def _blur(near: _Near) -> float:
    """Share of the boundary where the bands just inside and just outside differ by too little.

    Too little is half of the bands' common spread, a medium effect (Cohen 1988): speckle hides it from the eye.
    """
    band = max(3.0 / near.size, 0.08)
    rows, cols = np.nonzero(np.abs(near.depth) <= band)
    # Calipers lie on the boundary: exclude pixels as white as an overlay.
    seen = near.grey[rows, cols] < 250
    rows, cols = rows[seen], cols[seen]
    centre = np.argwhere(near.inside).mean(0)
    sector = (np.arctan2(rows - centre[0], cols - centre[1]) / (2 * np.pi) % 1 * SECTORS).astype(int) % SECTORS
    index, grey = sector + SECTORS * near.inside[rows, cols], near.grey[rows, cols]
    count, total, square = (
        np.bincount(index, weight, 2 * SECTORS).reshape(2, SECTORS) for weight in (None, grey, grey**2)
    )
    known = (count > 4).all(0)
    if not known.any():
        return 1.0
    mean = total[:, known] / count[:, known]
    variance = square[:, known] / count[:, known] - mean**2
    step = np.abs(mean[0] - mean[1]) / np.sqrt(np.maximum(variance.mean(0), 1.0))
    return float((step < 0.5).mean())


def _inside(near: _Near) -> tuple[float, float, float]:
    """`echo`, `fluid` and `unevenness` of `Measures`."""
    # The tissue behind the lesion is excluded, since enhancement and shadow change it.
    lowest = np.nonzero(near.inside.any(1))[0].max()
    beside = np.arange(near.inside.shape[0])[:, None] <= lowest
    around = (near.depth < -0.05) & (near.depth >= -REACH) & beside
    if not around.any():
        raise ValueError("no tissue is seen around the mask, which fills the frame")
    tissue = max(1.0, float(np.median(near.grey[around])))
    core = near.depth > 0.06  # the rim mixes with the tissue
    if not core.any():
        core = near.inside
    smooth = ndimage.gaussian_filter(near.grey, max(1.0, 0.04 * near.size))[core]
    low, high = np.percentile(smooth, [10, 90])
    fluid = (smooth < max(4.0, 0.3 * tissue)).mean()
    return float(np.median(near.grey[core]) / tissue), float(fluid), float((high - low) / tissue)


def _posterior(image: np.ndarray, mask: np.ndarray) -> float:
    """log2 of the grey behind the middle of the lesion over the grey beside, in the same rows; 0 if out of the frame.

    Behind: the middle 60 % of the lesion's columns, from below the contour down by half a diameter. Medians, so that
    burnt-in text and calipers do not count.
    """
    height = image.shape[0]
    size = _diameter(mask)
    columns = np.flatnonzero(mask.any(0))
    left, right = columns[0], columns[-1] + 1
    trim = 0.2 * (right - left)
    middle = np.arange(int(left + trim), max(int(left + trim) + 1, int(right - trim)))
    below = height - np.argmax(mask[::-1, middle], axis=0)  # first row under the contour, a column at a time
    gap, reach = max(2.0, 0.06 * size), 0.55 * size
    row = np.arange(height)[:, None]
    behind = (row >= below + gap) & (row < below + reach)
    start, stop = int(below.mean() + gap), min(height, int(below.mean() + reach))
    gutter, side = int(0.1 * size), int(0.6 * size)
    beside = np.concatenate(
        [
            image[start:stop, max(0, left - gutter - side) : max(0, left - gutter)].ravel(),
            image[start:stop, right + gutter : right + gutter + side].ravel(),
        ]
    )
    shadow = image[:, middle][behind]
    if min(shadow.size, beside.size) < 50:
        return 0.0
    return float(np.log2((np.median(shadow) + 4.0) / (np.median(beside) + 4.0)))  # 4 levels: the noise of black
