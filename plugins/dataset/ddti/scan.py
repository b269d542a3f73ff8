"""Finds the scan area of a frame; around it are text, a grey bar, rulers and the probe's icon.

The frames carry burnt-in text in their margins, on many of them the TI-RADS category itself, which a model would read
instead of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull

from framework.data.image_file import FileView

VERSION = 1  # part of the cache's name: increase it when the kept pixels change
SPOT = 5  # side of the squares over which grey is averaged [px]
LIT = 10  # such a mean above which a place is part of a scan, a letter or a bar
STROKE = 13  # narrower than this are letters, bars and icons in frames of 560 x 360 [px]
SHARE = 0.04  # of the frame, that a scan takes up at least: half of a double view takes more


@dataclass(frozen=True)
class ScanView:
    """A frame whose pixels outside of the scan area are black."""

    file: FileView

    @property
    def name(self) -> str:
        return self.file.name

    def load(self) -> np.ndarray:
        """Grey values, uint8: the box around the scan area, black outside of the area.

        Raises:
            OSError: the file is broken, or shows no scan.
        """
        image = self.file.load()
        grey_HW = image if image.ndim == 2 else image.mean(2).astype(np.uint8)
        area_HW = scan_area(grey_HW)
        rows, columns = np.flatnonzero(area_HW.any(1)), np.flatnonzero(area_HW.any(0))
        if not rows.size:
            raise OSError(f"{self.file.path}: shows no scan area to keep")
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return np.where(area_HW, grey_HW, 0)[box]


def scan_area(grey_HW: np.ndarray) -> np.ndarray:
    """Where a frame shows a scan: the convex hull of its wide bright parts, bool [H, W]; empty where there is none.

    Letters, bars and icons have narrow strokes and go with an opening; what is dark inside the hull, as a cyst or a
    shadow, belongs to the scan. A double view is one area.
    """
    lit_HW = ndimage.uniform_filter(grey_HW.astype(np.float32), SPOT) > LIT
    wide_HW = ndimage.binary_opening(lit_HW, np.ones((STROKE, STROKE), bool))
    labels_HW, parts = ndimage.label(wide_HW)
    sizes = np.bincount(labels_HW.ravel(), minlength=parts + 1)
    large = np.flatnonzero(sizes >= SHARE * grey_HW.size)
    area_HW = np.isin(labels_HW, large[large > 0])
    if not area_HW.any():
        return area_HW
    points = np.argwhere(area_HW & ~ndimage.binary_erosion(area_HW))
    corners = points[ConvexHull(points).vertices]
    hull = Image.new("1", grey_HW.shape[::-1])
    ImageDraw.Draw(hull).polygon([(int(column), int(row)) for row, column in corners], fill=1, outline=1)
    # The mean over a spot is bright up to half a spot beyond the edge.
    return ndimage.binary_erosion(np.array(hull), iterations=SPOT // 2, structure=np.ones((3, 3), bool))
