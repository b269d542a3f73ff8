"""Views in image files, and the check that a file named by a data set is inside its folder."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
from PIL import Image

# A header can claim any size. 100 million pixels are 25 times the largest ultrasound frame, and 300 MB decoded.
MAX_PIXELS = 100_000_000
# Only these formats of PIL: some others run external programs (EPS), and none of them is used for scans.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")


def inside(root: str | os.PathLike[str], relative: str) -> Path:
    """`root / relative`, which may not exist.

    Raises:
        ValueError: the path is absolute, leaves `root` by `..`, or follows a symbolic link out of `root`.
    """
    if not relative or "\0" in relative:
        raise ValueError(f"not a file name: {relative!r}")
    parts = PureWindowsPath(relative)  # knows / and \ as separators, and drives, on any system
    if relative.startswith("/") or parts.anchor:
        raise ValueError(f"'{relative}' is an absolute path, expected a path relative to {root}")
    if ".." in parts.parts:
        raise ValueError(f"'{relative}' leaves its folder {root} by '..'")
    try:
        path, base = (Path(root) / relative).resolve(), Path(root).resolve()
    except RuntimeError:  # what Python before 3.13 raises for a cycle of links
        raise ValueError(f"'{relative}' is a cycle of symbolic links") from None
    if not path.is_relative_to(base):
        raise ValueError(f"'{relative}' is a symbolic link to {path}, outside of its folder {root}")
    return path


@dataclass(frozen=True)
class FileView:
    """A view in a PNG, JPEG, BMP or TIFF file."""

    path: str
    name: str

    def load(self) -> np.ndarray:
        """The image, uint8 [H, W], or [H, W, 3] for colour. 16-bit grey becomes 8-bit.

        Raises:
            FileNotFoundError: the file does not exist.
            OSError: the file is not an image, is truncated, or claims more than `MAX_PIXELS` pixels.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS follows
                with Image.open(self.path, formats=FORMATS) as image:
                    width, height = image.size
                    if width * height > MAX_PIXELS:
                        raise OSError(f"{self.path}: {width} x {height} pixels, more than {MAX_PIXELS:,}; not decoded")
                    return _grey_or_colour(image, self.path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.path}: no such file") from None
        except Image.DecompressionBombError:
            raise OSError(f"{self.path}: more than {MAX_PIXELS:,} pixels; not decoded") from None
        except Image.UnidentifiedImageError:
            raise OSError(f"{self.path}: not an image in {', '.join(FORMATS)}") from None
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
            if str(error).startswith(self.path):
                raise
            # PIL's decoders raise many kinds of errors on damaged files.
            raise OSError(f"{self.path}: damaged or truncated, decoding failed ({error})") from None


def _grey_or_colour(image: Image.Image, path: str) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
        image.load()
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise OSError(f"{path}: grey values beyond 16 bits; save it with 8 or 16")
        return (deep // 257).astype(np.uint8)
    if image.mode == "F":
        raise OSError(f"{path}: holds floating-point values; save it with 8-bit grey or colour")
    return np.array(image.convert("L" if image.mode in {"1", "L", "LA", "La"} else "RGB"))
