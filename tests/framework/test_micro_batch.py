"""What `train.micro_batch: auto` tries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from framework.data import ExamSet, collate
from framework.exam import Exam
from framework.image_cache import build_image_cache
from framework.micro_batch import hardest_sample


@dataclass(frozen=True)
class Grey:
    """A view of one grey value."""

    value: int

    @property
    def name(self) -> str:
        return f"grey {self.value}"

    def load(self) -> np.ndarray:
        return np.full((8, 8), self.value, np.uint8)


# Views and words of each exam: the most of both are never of the same exam, nor always of the first or the last.
RAGGED = [
    [(1, 3), (4, 2), (2, 9), (3, 5)],
    [(4, 1), (1, 9)],
    [(1, 9), (4, 1)],
    [(2, 2), (1, 9), (4, 4), (1, 1)],
]


@pytest.mark.parametrize("ragged", RAGGED)
def test_the_hardest_exam_has_the_most_views_and_the_longest_report_of_any(
    tmp_path: Path, ragged: list[tuple[int, int]]
) -> None:
    exams = [
        Exam(f"e{number}", f"p{number}", tuple(Grey(10 * number + view) for view in range(views)), "text")
        for number, (views, _) in enumerate(ragged)
    ]
    cache, _ = build_image_cache(exams, source_key="k", size=8, channels=1, folder=tmp_path, broken="stop")
    tokens = [list(range(5, 5 + words)) for _, words in ragged]
    hardest = hardest_sample(ExamSet(exams, cache, tokens, np.arange(len(exams))))
    assert hardest.image_VCHW.shape == (4, 1, 8, 8) and len(hardest.tokens) == 9
    batch = collate([hardest] * 3)
    assert batch.image_BVCHW.shape == (3, 4, 1, 8, 8) and batch.view_mask_BV.all()
    assert batch.report_BT.shape == (3, 9)
