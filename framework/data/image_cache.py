"""Cache of decoded and resized images in one memory-mapped file; benchmarks/loading.py compares it with decoding.

A file is complete once its size and SHA-256 stand beside it in a JSON file. map_cache.py stores feature maps likewise.

Does not import torch, which every spawned worker process would import again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from framework.exam import Exam, ExamError, View
from framework.runtime.console import print0
from framework.runtime.errors import ProcessLost, UserError
from framework.runtime.files import atomic_write, digest, file_lock, is_locked
from framework.runtime.live import ProgressBar
from framework.runtime.processes import end_with_parent, require_shared_locks, usable_cores

GUARD = 'Put what it does under `if __name__ == "__main__":`.'
VERSION = 2  # raise it when the same view would give other pixels


@dataclass(frozen=True)
class ImageCache:
    """A file of images, uint8 [rows, C, H, W], or of feature maps, and the rows of each exam's views."""

    path: Path
    rows: dict[str, tuple[int, ...]]  # by exam id

    def images(self, exam_id: str) -> np.ndarray:
        """The views of an exam, uint8 [V, C, H, W], read-only. Their rows follow each other.

        Raises:
            UserError: the file was removed or changed before this process opened it.
        """
        rows = self.rows[exam_id]
        return self.array[rows[0] : rows[-1] + 1]

    @cached_property
    def array(self) -> np.ndarray:
        """All images. Opened once in each process: opening takes longer than to read an exam."""
        try:
            return np.asarray(np.load(self.path, mmap_mode="r"))
        except (OSError, ValueError) as error:
            hint = "The cache of images changed while it was in use. Start again, a training with resume=auto."
            raise UserError("damaged-file", f"cannot be read: {error}", place=self.path, hint=hint) from None

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the file itself."""
        return {"path": self.path, "rows": self.rows}


def fit(image: np.ndarray, size: int, channels: int, autocontrast: float | None = None) -> np.ndarray:
    """Scales an image into a square with its proportions kept, padded with black. Returns uint8 [C, size, size].

    Args:
        autocontrast: percentage of the darkest pixels that become black, and of the brightest that become white, with
            the grey levels between them stretched; colours keep their tone.
    """
    scaled = Image.fromarray(image).convert("L" if channels == 1 else "RGB")
    if autocontrast is not None:
        scaled = ImageOps.autocontrast(scaled, autocontrast, preserve_tone=True)
    square = np.asarray(ImageOps.pad(scaled, (size, size), Image.Resampling.BILINEAR))
    return square[None] if channels == 1 else square.transpose(2, 0, 1)


Job = tuple[str, View, int, int, float | None]  # exam id, view and the arguments of `fit`


def _load(job: Job) -> np.ndarray | ExamError:
    exam_id, view, size, channels, autocontrast = job
    try:
        return fit(view.load(), size, channels, autocontrast)
    except (OSError, ValueError) as error:
        return view_error(exam_id, view, error)


def view_error(exam_id: str, view: View, error: OSError | ValueError) -> ExamError:
    """The error of an exam with a view that does not load."""
    if isinstance(error, UserError):  # which names its file
        (first, *_) = error.problems
        return ExamError(exam_id, first.code, f"view {view.name}: {first.place}: {first.found}", hint=first.hint)
    of_system = isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError)
    return ExamError(exam_id, "unreadable-file" if of_system else "broken-image", f"view {view.name}: {error}")


@dataclass(frozen=True)
class UncachedImages:
    """The images of exams, decoded and resized each time they are read, for sets larger than the disk."""

    rows: dict[str, tuple[View, ...]]  # by exam id
    size: int
    channels: int
    autocontrast: float | None

    def images(self, exam_id: str) -> np.ndarray:
        """The views of an exam, uint8 [V, C, H, W].

        Raises:
            ExamError: a view does not load.
        """
        loaded = [_load((exam_id, view, self.size, self.channels, self.autocontrast)) for view in self.rows[exam_id]]
        for image in loaded:
            if isinstance(image, ExamError):
                raise image
        return np.stack(loaded)  # type: ignore[arg-type]


Images = ImageCache | UncachedImages


@dataclass(frozen=True)
class Complete:
    """What is known of a cached file. Written after it: it marks the file as complete.

    Attributes:
        errors: row, code and text of each view that did not load.
    """

    size: int
    sha256: str
    errors: list[tuple[int, str, str]]


def build_image_cache(
    exams: Sequence[Exam],
    *,
    source_key: str,
    size: int,
    channels: int,
    autocontrast: float | None = None,
    folder: Path,
    on_broken: Literal["stop", "skip"],
) -> tuple[ImageCache, list[ExamError]]:
    """The images of the exams, from disk if they are cached and undamaged, otherwise decoded on all cores.

    Views that did not load are tried again; if one loads now, the images are made again.

    Returns:
        the cache, and the errors of the exams that are left out of it (with `on_broken: skip`).

    Raises:
        ExamError: with `on_broken: stop`, a problem for every view that does not load.
        UserError: the disk has no room for the images.
        ProcessLost: a decoding process was killed.
    """
    jobs = [(exam.id, view, size, channels, autocontrast) for exam in exams for view in exam.views]
    names = [(exam_id, view.name) for exam_id, view, *_ in jobs]
    key = hashlib.sha256(json.dumps([VERSION, source_key, size, channels, autocontrast, names]).encode()).hexdigest()[
        :24
    ]
    path = folder / "images" / f"{key}.npy"
    found = _read_images(path, jobs)  # an existing cache may be on a read-only disk, so no lock is taken
    if found is None:
        _require_guarded_script()
        with file_lock(path.with_suffix(".lock"), "images"):
            found = _read_images(path, jobs) or _write_cache(jobs, path, size, channels)
    errors = [ExamError(jobs[row][0], code, text) for row, code, text in found.errors]
    if errors and on_broken == "stop":
        raise ExamError.of(problem for error in errors for problem in error.problems)
    left_out = {error.exam_id for error in errors}
    rows: dict[str, tuple[int, ...]] = {}
    for row, (exam_id, *_) in enumerate(jobs):
        if exam_id not in left_out:
            rows[exam_id] = (*rows.get(exam_id, ()), row)
    return ImageCache(path, rows), errors


def _require_guarded_script() -> None:
    """Raises UserError in a decoding process that runs the script of its parent again, which waits for it."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "unguarded-script",
            "the processes that decode images run this script again",
            place=getattr(sys.modules.get("__mp_main__"), "__file__", None) or sys.argv[0],
            hint=GUARD,
        )


def _read_images(path: Path, jobs: list[Job]) -> Complete | None:
    """What is known of images that can be used; None if they have to be made."""
    found = read_complete(path)
    if found is not None and os.access(path.parent, os.W_OK):
        for row, *_ in found.errors:
            if not isinstance(_load(jobs[row]), ExamError):
                print0(f"view {jobs[row][1].name} of exam {jobs[row][0]} loads now: the images are made again")
                return None
    return found


def read_complete(path: Path) -> Complete | None:
    """What is known of a cached file; None if it is missing, or not as it was written."""
    try:
        found = Complete(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        size = path.stat().st_size
    except (OSError, ValueError, TypeError):
        return None
    # The other processes of a machine would read the same bytes.
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if size != found.size or (is_first and digest(path) != found.sha256):
        print0(f"warning: {path} is damaged, and made again")
        return None
    return found


def write_complete(path: Path, errors: list[tuple[int, str, str]]) -> Complete:
    """Marks a cached file as complete."""
    found = Complete(path.stat().st_size, digest(path), errors)
    atomic_write(path.with_suffix(".json"), json.dumps(asdict(found)))
    return found


def remove_parts(path: Path) -> None:
    """Removes unfinished files in the folder, of processes that were killed; others hold a lock."""
    for left in path.parent.glob("*.part"):
        key = left.name.partition(".")[0]
        if key == path.stem or not is_locked(path.with_name(f"{key}.lock")):
            left.unlink(missing_ok=True)


def _write_cache(jobs: list[Job], path: Path, size: int, channels: int) -> Complete:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_parts(path)
    part = path.with_suffix(f".{os.getpid()}.part")
    require_shared_locks("decode images")
    errors: list[tuple[int, str, str]] = []
    shape = (len(jobs), channels, size, size)
    try:
        images = open_reserved(part, shape, np.uint8, "images")
        with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn"), initializer=start_decoder) as pool:
            loaded: Any = pool.map(_load, jobs, chunksize=16) if len(jobs) > 64 else map(_load, jobs)
            for row, image in enumerate(ProgressBar(loaded, total=len(jobs), text="images")):
                if isinstance(image, ExamError):
                    errors.append((row, image.code, image.problems[0].found))
                else:
                    images[row] = image
        images.flush()
        del images
        part.replace(path)
    except BrokenProcessPool:
        raise ProcessLost(
            "a process that decodes images has ended, most often because the machine ran out of memory; start again. "
            f"Or a script of yours is not guarded: {GUARD}"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return write_complete(path, errors)


def open_reserved(part: Path, shape: tuple[int, ...], dtype: type[np.generic], what: str) -> np.memmap:
    """A new array of zeros in a file, mapped into memory, whose space is reserved: a mapped page that the disk has no
    room for ends the process by SIGBUS.

    Raises:
        UserError: the disk or the quota has no room for it.
    """
    needed, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(part.parent).free
    try:
        if needed > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        images = np.lib.format.open_memmap(part, "w+", dtype, shape)
        with part.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return images
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            "cannot-write",
            f"the cache of {what} needs {needed / 2**20:,.1f} MiB, {free / 2**20:,.1f} MiB are free ({error.strerror})",
            place=part.parent,
            hint="Set data.cache_dir to a folder on a larger disk, or lower data.image_size.",
        ) from None
    return images


def start_decoder() -> None:
    """Ctrl-C reaches the decoders too; the process that started them handles it. They end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
