"""The image cache: broken views, files that are written once, and scaling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import problem

from framework.data.image_cache import build_image_cache, fit
from framework.exam import Exam, ExamError


@dataclass(frozen=True)
class Plain:
    """A view of one grey value, or a broken one."""

    value: int

    @property
    def name(self) -> str:
        return f"grey {self.value}"

    def load(self) -> np.ndarray:
        if self.value < 0:
            raise OSError("truncated")
        return np.full((8, 8), self.value, np.uint8)


def exam(number: int, *values: int) -> Exam:
    return Exam(f"e{number}", f"p{number}", tuple(Plain(value) for value in values), "text")


def make_cache(exams: list[Exam], folder: Path, broken: str = "stop"):
    return build_image_cache(exams, source_key="k", size=8, channels=1, folder=folder, on_broken=broken)  # type: ignore[arg-type]


def test_broken_views_stop_the_run_and_all_are_listed(tmp_path: Path) -> None:
    exams = [exam(1, 9), exam(2, -1), exam(3, 9, -2)]
    with problem("broken-image", kind=ExamError) as found:
        make_cache(exams, tmp_path)
    assert [each.place for each in found] == ["exam e2", "exam e3"]


def test_broken_views_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    cache, problems = make_cache([exam(1, 7), exam(2, -1), exam(3, 9)], tmp_path, broken="skip")
    assert [problem.exam_id for problem in problems] == ["e2"]
    assert set(cache.rows) == {"e1", "e3"} and cache.images("e3").max() == 9


def test_images_are_decoded_once(tmp_path: Path) -> None:
    first, _ = make_cache([exam(1, 7)], tmp_path)
    changed = first.path.stat().st_mtime_ns
    second, _ = make_cache([exam(1, 7)], tmp_path)
    assert second.path == first.path and second.path.stat().st_mtime_ns == changed


def test_the_aspect_ratio_is_kept() -> None:
    square = fit(np.full((10, 20), 200, np.uint8), 16, 1)[0]
    assert square[8].min() == 200 and square[0].max() == 0
