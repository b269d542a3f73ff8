"""Cache of decoded and resized images in one memory-mapped file: decoding takes 200 times as long as reading back.

Does not import torch, which every spawned worker process would import again.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from framework.exam import Exam, ExamError, View
from framework.runtime.console import progress_bar
from framework.runtime.files import atomic_write, file_lock
from framework.runtime.processes import usable_cores

VERSION = 2  # raise it when the same view would give other pixels


@dataclass(frozen=True)
class ImageCache:
    """A file of images, uint8 [rows, C, H, W], and the rows of each exam's views."""

    path: Path
    rows: dict[str, tuple[int, ...]]  # by exam id

    def images(self, exam_id: str) -> np.ndarray:
        """The views of an exam, uint8 [V, C, H, W]."""
        return np.load(self.path, mmap_mode="r")[list(self.rows[exam_id])]


def fit(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Scales an image into a square with its proportions kept, padded with black. Returns uint8 [C, size, size]."""
    scaled = Image.fromarray(image).convert("L" if channels == 1 else "RGB")
    square = np.asarray(ImageOps.pad(scaled, (size, size), Image.Resampling.BILINEAR))
    return square[None] if channels == 1 else square.transpose(2, 0, 1)


def _load(job: tuple[str, View, int, int]) -> np.ndarray | ExamError:
    exam_id, view, size, channels = job
    try:
        return fit(view.load(), size, channels)
    except (OSError, ValueError) as error:
        return ExamError(exam_id, "broken-image", f"view {view.name}: {error}")


def build_image_cache(
    exams: Sequence[Exam],
    *,
    source_key: str,
    size: int,
    channels: int,
    folder: Path,
    on_broken: Literal["stop", "skip"],
) -> tuple[ImageCache, list[ExamError]]:
    """The images of the exams, from disk if they are cached, otherwise decoded on all cores.

    Returns:
        the cache, and the errors of the exams that are left out of it (with `on_broken: skip`).

    Raises:
        ExamError: with `on_broken: stop`, a problem for every view that does not load.
    """
    jobs = [(exam.id, view, size, channels) for exam in exams for view in exam.views]
    names = [(exam_id, view.name) for exam_id, view, *_ in jobs]
    key = hashlib.sha256(json.dumps([VERSION, source_key, size, channels, names]).encode()).hexdigest()[:24]
    path, metadata = folder / "images" / f"{key}.npy", folder / "images" / f"{key}.json"
    if not metadata.is_file():  # an existing cache may be on a read-only disk, so no lock is taken
        with file_lock(path.with_suffix(".lock"), "images"):
            if not metadata.is_file():
                _write_cache(jobs, path, metadata, size, channels)
    rows_of_broken = json.loads(metadata.read_text(encoding="utf-8"))
    errors = [ExamError(exam_id, "broken-image", found) for exam_id, found in rows_of_broken]
    if errors and on_broken == "stop":
        metadata.unlink()  # so that fixed files are read again
        raise ExamError.of(problem for error in errors for problem in error.problems)
    left_out = {error.exam_id for error in errors}
    rows: dict[str, tuple[int, ...]] = {}
    for row, (exam_id, *_) in enumerate(jobs):
        if exam_id not in left_out:
            rows[exam_id] = (*rows.get(exam_id, ()), row)
    return ImageCache(path, rows), errors


def _write_cache(jobs: list[tuple[str, View, int, int]], path: Path, metadata: Path, size: int, channels: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    errors: list[ExamError] = []
    try:
        images = np.lib.format.open_memmap(part, "w+", np.uint8, (len(jobs), channels, size, size))
        # Ctrl-C reaches the workers too; this process handles it, and they end with it.
        ignore = (signal.SIGINT, signal.SIG_IGN)
        context = get_context("spawn")
        with ProcessPoolExecutor(
            usable_cores(), mp_context=context, initializer=signal.signal, initargs=ignore
        ) as pool:
            loaded = pool.map(_load, jobs, chunksize=16) if len(jobs) > 64 else map(_load, jobs)
            for row, image in enumerate(progress_bar(loaded, total=len(jobs), text="images")):
                if isinstance(image, ExamError):
                    errors.append(image)
                else:
                    images[row] = image
        images.flush()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    # Written last: it marks the images as complete.
    atomic_write(metadata, json.dumps([(error.exam_id, error.problems[0].found) for error in errors]))
