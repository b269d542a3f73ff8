"""A tiny archive in the layout of BUS-BRA, with drawn lesions."""

import csv

import numpy as np
from PIL import Image

ROWS, COLS = np.mgrid[:240, :260]


def ellipse(height, width, row=90, col=130):
    return ((ROWS - row) / (height / 2)) ** 2 + ((COLS - col) / (width / 2)) ** 2 <= 1


def scan(mask, inside=60, outside=110, behind=None, seed=0):
    """Speckled tissue with a lesion, and another grey below it where asked."""
    grey = np.full(mask.shape, outside, float)
    if behind is not None:
        below = np.cumsum(mask, axis=0) >= mask.sum(0)
        grey[below & mask.any(0) & ~mask] = behind
    grey[mask] = inside
    speckle = np.random.default_rng(seed).normal(1, 0.15, mask.shape)
    return np.clip(grey * speckle, 0, 255).astype(np.uint8)


def draw(root, rows):
    """A tiny archive: (id, BI-RADS, fold, valid_1, mask), and the device where it is not a GE."""
    (root / "Images").mkdir(parents=True)
    (root / "Masks").mkdir()
    data = [["ID", "Case", "Histology", "Pathology", "BIRADS", "Device", "Width", "Height", "Side", "BBOX"]]
    folds = [["ID", "Pathology", "kFold", "valid_1"]]
    for number, (name, birads, fold, valid, mask, *device) in enumerate(rows):
        Image.fromarray(scan(mask, seed=number)).save(root / "Images" / f"bus_{name}.png")
        Image.fromarray(mask).save(root / "Masks" / f"mask_{name}.png")
        scanner = device[0] if device else "GE"
        data.append([f"bus_{name}", int(name[:4]), "cyst", "benign", birads, scanner, 260, 240, "left", "[1,2,3,4]"])
        folds.append([f"bus_{name}", "benign", fold, valid])
    for file, table in (("bus_data.csv", data), ("5-fold-cv.csv", folds)):
        with (root / file).open("w", newline="") as stream:
            csv.writer(stream).writerows(table)
    return root
