"""Images decoded and resized once, in one memory-mapped file: decoding costs 200 times as much as reading back.

Imports no torch, since its worker processes start anew.
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

from framework.data.check import listing
from framework.exam import Exam, ExamError, View
from framework.runtime.console import progress_bar
from framework.runtime.files import atomic_write, one_at_a_time
from framework.runtime.processes import usable_cores

VERSION = 1  # raise it when the same view would come out as other pixels


@dataclass(frozen=True)
class ImageCache:
    """Grey values uint8 [rows, C, H, W], and where an exam's views stand in it."""

    path: Path
    rows: dict[str, tuple[int, ...]]  # by exam id

    def images(self, exam_id: str) -> np.ndarray:
        """The views of an exam, uint8 [V, C, H, W]."""
        return np.load(self.path, mmap_mode="r")[list(self.rows[exam_id])]


def fit(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Scales into a square of `size` pixels, proportions kept, black around. Returns uint8 [C, size, size]."""
    picture = Image.fromarray(image).convert("L" if channels == 1 else "RGB")
    square = np.asarray(ImageOps.pad(picture, (size, size), Image.Resampling.BILINEAR))
    return square[None] if channels == 1 else square.transpose(2, 0, 1)


def _load(job: tuple[str, View, int, int]) -> np.ndarray | ExamError:
    exam_id, view, size, channels = job
    try:
        return fit(view.load(), size, channels)
    except (OSError, ValueError) as error:
        return ExamError(exam_id, f"view {view.name}: {error}")


def build_image_cache(
    exams: Sequence[Exam],
    *,
    source_key: str,
    size: int,
    channels: int,
    folder: Path,
    on_broken: Literal["stop", "skip"],
) -> tuple[ImageCache, list[ExamError]]:
    """The images of these exams, from disk where they are there, else made by all cores.

    Returns:
        The cache, and the problems of the exams that are left out of it (with `on_broken: skip`).

    Raises:
        ValueError: with `on_broken: stop`, one line for every view that does not load.
    """
    jobs = [(exam.id, view, size, channels) for exam in exams for view in exam.views]
    names = [(exam_id, view.name) for exam_id, view, *_ in jobs]
    key = hashlib.sha256(json.dumps([VERSION, source_key, size, channels, names]).encode()).hexdigest()[:24]
    path, notes = folder / "images" / f"{key}.npy", folder / "images" / f"{key}.json"
    if not notes.is_file():  # a cache that is there may be on a disk that this machine may only read
        with one_at_a_time(path.with_suffix(".lock"), "images"):
            if not notes.is_file():
                _make(jobs, path, notes, size, channels)
    problems = [ExamError(*row) for row in json.loads(notes.read_text(encoding="utf-8"))]
    if problems and on_broken == "stop":
        notes.unlink()  # so that a mended file is looked at again
        listed = listing(problems, most=len(problems))
        raise ValueError(
            f"{len(problems)} views cannot be read (data.on_broken: skip leaves their exams out):\n{listed}"
        )
    left_out = {problem.exam_id for problem in problems}
    rows: dict[str, tuple[int, ...]] = {}
    for row, (exam_id, *_) in enumerate(jobs):
        if exam_id not in left_out:
            rows[exam_id] = (*rows.get(exam_id, ()), row)
    return ImageCache(path, rows), problems


def _make(jobs: list[tuple[str, View, int, int]], path: Path, notes: Path, size: int, channels: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    problems: list[ExamError] = []
    try:
        images = np.lib.format.open_memmap(part, "w+", np.uint8, (len(jobs), channels, size, size))
        # Ctrl-C reaches the workers too; it is ours to heed, and they end with us.
        deaf = (signal.SIGINT, signal.SIG_IGN)
        context = get_context("spawn")
        with ProcessPoolExecutor(usable_cores(), mp_context=context, initializer=signal.signal, initargs=deaf) as pool:
            loaded = pool.map(_load, jobs, chunksize=16) if len(jobs) > 64 else map(_load, jobs)
            for row, image in enumerate(progress_bar(loaded, total=len(jobs), text="images")):
                if isinstance(image, ExamError):
                    problems.append(image)
                else:
                    images[row] = image
        images.flush()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    # Last: it says that the images are whole.
    atomic_write(notes, json.dumps([(problem.exam_id, problem.problem) for problem in problems]))
