"""Synthetic exams: a bright square left or right of the middle, and a report of its side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import PositiveInt

from framework.exam import Exam
from framework.registry import register

VERSION = 1  # increase it when the images of the same settings change
SIZE = 64
SIZES = {"train": 2, "val": 1, "test": 1}


@dataclass(frozen=True)
class SquareView:
    """One image, drawn on load. Views are pickled for worker processes, so they hold only numbers and paths."""

    name: str
    column: int
    seed: int

    def load(self) -> np.ndarray:
        """Grey levels, uint8, H x W."""
        image = np.random.default_rng(self.seed).integers(0, 60, (SIZE, SIZE), dtype=np.uint8)
        image[24:40, self.column : self.column + 16] += 150
        return image


@register("dataset", "my_dataset")
class MyDataset:
    """Exams with a square, each of another patient.

    Args:
        exams: Number of exams in `val` and in `test`; `train` has twice as many.
        seed: Random seed of images and reports.
    """

    def __init__(self, *, exams: PositiveInt = 8, seed: int = 0) -> None:
        self.exams, self.seed = exams, seed

    def splits(self) -> dict[str, Sequence[Exam]]:
        """The exams of `train`, `val` and `test`; loads no view."""
        splits: dict[str, Sequence[Exam]] = {}
        number = 0
        for split, size in SIZES.items():
            splits[split] = [self._exam(f"{split}-{place}", number + place) for place in range(size * self.exams)]
            number += size * self.exams
        return splits

    @property
    def cache_key(self) -> str:
        """Identifies the images: those of one key are decoded once."""
        return f"my_dataset-{VERSION}-{self.exams}-{self.seed}"

    def _exam(self, exam_id: str, number: int) -> Exam:
        draw = np.random.default_rng([self.seed, number])
        side = ("left", "right")[int(draw.integers(2))]
        column = int(draw.integers(2, 14)) + (0 if side == "left" else SIZE // 2)
        view = SquareView(f"{exam_id}.png", column, int(draw.integers(2**31)))
        report = f"A bright square {side} of the middle. No other finding."
        return Exam(exam_id, patient=exam_id, views=(view,), report=report, attributes={"side": side})
