"""Made-up exams: a bright square left or right of the middle, and a report that says where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import PositiveInt

from framework.exam import Exam
from framework.registry import register

VERSION = 1  # raise it when the same settings would give other images
SIZE = 64
SHARES = {"train": 2, "val": 1, "test": 1}


@dataclass(frozen=True)
class SquareView:
    """One image, drawn when asked for. Views cross to worker processes, so they hold numbers and paths alone."""

    name: str
    column: int
    seed: int

    def load(self) -> np.ndarray:
        """Grey values, uint8, H x W."""
        image = np.random.default_rng(self.seed).integers(0, 60, (SIZE, SIZE), dtype=np.uint8)
        image[24:40, self.column : self.column + 16] += 150
        return image


@register("dataset", "my_dataset")
class MyDataset:
    """Exams with a drawn square, each of a patient of its own.

    Args:
        exams: Exams in `val` and in `test`; `train` has twice as many.
        seed: Of all that is drawn.
    """

    def __init__(self, *, exams: PositiveInt = 8, seed: int = 0) -> None:
        self.exams, self.seed = exams, seed

    def splits(self) -> dict[str, Sequence[Exam]]:
        """The exams of `train`, `val` and `test`. Cheap: no view is loaded."""
        found: dict[str, Sequence[Exam]] = {}
        number = 0
        for split, share in SHARES.items():
            found[split] = [self._exam(f"{split}-{place}", number + place) for place in range(share * self.exams)]
            number += share * self.exams
        return found

    @property
    def cache_key(self) -> str:
        """Changes whenever an image could: images of one key are decoded once."""
        return f"my_dataset-{VERSION}-{self.exams}-{self.seed}"

    def _exam(self, exam_id: str, number: int) -> Exam:
        draw = np.random.default_rng([self.seed, number])
        side = ("left", "right")[int(draw.integers(2))]
        column = int(draw.integers(2, 14)) + (0 if side == "left" else SIZE // 2)
        view = SquareView(f"{exam_id}.png", column, int(draw.integers(2**31)))
        report = f"A bright square {side} of the middle. No other finding."
        return Exam(exam_id, patient=exam_id, views=(view,), report=report, attributes={"side": side})
