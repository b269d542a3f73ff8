"""Views in image files, and the check that a file named by a data set is inside its folder."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import numpy as np
from PIL import Image

from framework.exam import Exam

# A header can claim any size. 100 million pixels are 25 times the largest ultrasound frame, and 300 MB decoded.
MAX_PIXELS = 100_000_000
# Only these formats of PIL: some others run external programs (EPS), and none of them is used for scans.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
# Scanners store 10, 12 or 14 bits in files of 16. The least of these depths that holds the largest value is the window.
DEPTHS = (8, 10, 12, 14, 16)
ORIENTATION = 0x0112  # EXIF tag: how to turn the pixels as stored into the picture as viewers show it
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SUBFILE_TYPE = 254  # TIFF tag: bit 0 marks a reduced copy of another page, bit 2 a mask


def is_absolute(name: str) -> bool:
    """Whether a path is absolute on any system: with / or \\ at its start, or a drive."""
    return name.startswith("/") or bool(PureWindowsPath(name).anchor)


def inside(root: str | os.PathLike[str], relative: str) -> Path:
    """`root / relative`, which may not exist.

    Raises:
        ValueError: the path is absolute, leaves `root` by `..`, or follows a symbolic link out of `root`.
    """
    if not relative or "\0" in relative:
        raise ValueError(f"not a file name: {relative!r}")
    if is_absolute(relative):
        raise ValueError(f"'{relative}' is an absolute path, expected a path relative to {root}")
    if ".." in PureWindowsPath(relative).parts:
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
    """A view in a PNG, JPEG, BMP, TIFF, WebP or GIF file.

    `window` are the values of 16-bit grey and floating-point files that become black and white.
    """

    path: str
    name: str
    window: tuple[float, float] | None = None

    def load(self) -> np.ndarray:
        """The image as viewers show it, uint8 [H, W], or [H, W, 3] for colour.

        16-bit grey without a window is scaled from 0 to 2^n - 1, with n the least of 8, 10, 12, 14 and 16 bits that
        holds the largest value of the file. The EXIF orientation is applied; what is transparent is black.

        Raises:
            FileNotFoundError: the file does not exist.
            OSError: the file is not an image, is truncated, has several pages, is 16-bit colour of a low range,
                needs a window, or claims more than `MAX_PIXELS` pixels. With an errno if the system could not read it.
        """
        with _named(self.path):
            if not stat.S_ISREG(Path(self.path).stat().st_mode):
                raise OSError(f"{self.path}: not a regular file")
            # A file, not its path: of a path, PIL maps a turned TIFF into memory with width and height swapped.
            with Path(self.path).open("rb") as file:
                return _decoded(file, self.path, self.window, MAX_PIXELS)


def read_image(content: bytes, name: str, max_pixels: int, window: tuple[float, float] | None = None) -> np.ndarray:
    """The image in the content of a file, as `FileView.load` returns it.

    Args:
        name: of the file, for messages.
        window: see `FileView`.

    Raises:
        OSError: as `FileView.load`.
    """
    with _named(name):
        return _decoded(io.BytesIO(content), name, window, max_pixels)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns every error of a file or of PIL into an OSError whose text begins with the file's name."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except Image.DecompressionBombError:
        raise OSError(f"{name}: more than {MAX_PIXELS:,} pixels; not decoded") from None
    except Image.UnidentifiedImageError:
        raise OSError(f"{name}: not an image in {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        if str(error).startswith(name):
            raise
        if isinstance(error, OSError) and error.errno is not None:  # of the system; PIL's own have no number
            reason = (error.strerror or type(error).__name__).lower()
            raise _OfSystemError(error.errno, f"{name}: cannot be read: {reason}") from None
        # PIL's decoders raise many kinds of errors on damaged files.
        raise OSError(f"{name}: damaged or truncated, decoding failed ({error})") from None


def _decoded(file: BinaryIO, name: str, window: tuple[float, float] | None, max_pixels: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels follows
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise OSError(f"{name}: {width} x {height} pixels, more than {max_pixels:,}; not decoded")
            if (pages := _pages(image)) > 1:
                raise OSError(f"{name}: holds {pages} pages; save each as a file and list it as a view of the exam")
            return _grey_or_colour(image, name, window)


class _OfSystemError(OSError):
    """The system could not read a file, which says nothing of its content."""

    def __str__(self) -> str:
        return str(self.strerror)


def _pages(image: Image.Image) -> int:
    """The pages of a TIFF file or frames of a PNG, GIF or WebP file, without reduced copies and masks of a page.

    Further pictures in a JPEG file (MPO) are depth maps and previews of the first one.
    """
    frames = getattr(image, "n_frames", 1)
    if frames == 1 or image.format in ("PNG", "GIF", "WEBP"):
        return frames
    if image.format != "TIFF":
        return 1
    pages = 0
    for frame in range(frames):
        image.seek(frame)
        pages += not image.tag_v2.get(SUBFILE_TYPE, 0) & 0b101  # type: ignore[attr-defined]
    image.seek(0)
    return pages


def files_key(content: bytes, splits: Mapping[str, Sequence[Exam]]) -> str:
    """Hash of a file that lists exams, and of name, size, time and window of every image of `splits`, whose
    views are files."""
    seen = hashlib.sha256(content)
    for exam in (exam for exams in splits.values() for exam in exams):
        for view in exam.views:
            assert isinstance(view, FileView)
            stat = Path(view.path).stat()
            window = "" if view.window is None else f" {view.window}"
            seen.update(f"{exam.id} {view.name} {stat.st_size} {stat.st_mtime_ns}{window}\n".encode())
    return seen.hexdigest()[:20]


def is_blank(image: np.ndarray) -> bool:
    """Whether an image [H, W] or [H, W, C] has no picture: no pixel differs from the first one."""
    return not image.size or bool((image == image[:1, :1]).all())


def _grey_or_colour(image: Image.Image, path: str, window: tuple[float, float] | None) -> np.ndarray:
    is_deep_colour = image.mode in {"RGB", "RGBA", "LA"} and any(
        ";16" in str(tile[3]) for tile in getattr(image, "tile", ())
    )
    image.load()
    # PIL turns TIFF itself. A damaged EXIF block reads as none.
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1)) if image.format != "TIFF" else None
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _scaled(np.asarray(image), path, window)
    to = "L" if image.mode in {"1", "L", "LA", "La"} else "RGB"
    if image.has_transparency_data:  # a viewer hides what is transparent, such as an erased name
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    found = np.array(image.convert(to))
    if is_deep_colour and 0 < found.max() < 128:  # PIL keeps the upper 8 of 16 bits only
        raise OSError(
            f"{path}: 16-bit colour with values up to about {int(found.max()) * 257} of 65535; save it with 8 bits"
        )
    return found


def _scaled(deep: np.ndarray, path: str, window: tuple[float, float] | None) -> np.ndarray:
    """16-bit and floating-point grey as uint8."""
    if window is not None:
        if not np.isfinite(deep).all():
            raise OSError(f"{path}: holds NaN or infinite values")
        low, high = window
        return (np.clip((deep.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    if deep.dtype.kind == "f":
        raise OSError(f"{path}: holds floating-point values {deep.min():g} to {deep.max():g}; set data.dataset.window")
    deep = deep.astype(np.int64)
    if deep.min() < 0 or deep.max() > 65535:
        raise OSError(f"{path}: grey values {deep.min()} to {deep.max()}, beyond 16 bits; set data.dataset.window")
    depth = next(depth for depth in DEPTHS if deep.max() < 2**depth)
    return (deep * 255 // (2**depth - 1)).astype(np.uint8)
