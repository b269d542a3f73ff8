"""Exams whose views have one grey value each, and their image cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from framework.data.image_cache import ImageCache, build_image_cache
from framework.exam import Exam, ExamError


@dataclass(frozen=True)
class GreyView:
    """A view of one grey value, or a broken one if it is negative."""

    value: int

    @property
    def name(self) -> str:
        return f"grey {self.value}"

    def load(self) -> np.ndarray:
        if self.value < 0:
            raise OSError("truncated")
        return np.full((8, 8), self.value, np.uint8)


def exam(number: int, *values: int) -> Exam:
    return Exam(f"e{number}", f"p{number}", tuple(GreyView(value) for value in values), "text")


def make_cache(
    exams: list[Exam], folder: Path, on_broken: Literal["stop", "skip"] = "stop"
) -> tuple[ImageCache, list[ExamError]]:
    return build_image_cache(exams, source_key="k", size=8, channels=1, folder=folder, on_broken=on_broken)
