"""The image cache: broken views, files that are written once, and scaling."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from grey_exams import exam, make_cache
from harness import ROOT, problem

from framework.build import _require_exams
from framework.data.image_cache import build_image_cache, fit
from framework.exam import Exam, ExamError
from framework.runtime.files import file_lock


def test_broken_views_stop_the_run_and_all_are_listed(tmp_path: Path) -> None:
    exams = [exam(1, 9), exam(2, -1), exam(3, 9, -2)]
    with problem("broken-image", kind=ExamError) as found:
        make_cache(exams, tmp_path)
    assert [each.place for each in found] == ["exam e2", "exam e3"]


def test_broken_views_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    cache, problems = make_cache([exam(1, 7), exam(2, -1), exam(3, 9)], tmp_path, on_broken="skip")
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


def test_autocontrast_stretches_each_image_and_not_its_padding() -> None:
    ramp = np.tile(np.arange(50, 150, dtype=np.uint8), (50, 1))
    square = fit(ramp, 100, 1, autocontrast=1.0)[0]
    assert square[50, 0] == 0 and square[50, -1] == 255 and square[0].max() == 0
    assert fit(ramp, 100, 1)[0][50].min() == 50
    grey = fit(np.full((8, 8), 60, np.uint8), 8, 1, autocontrast=1.0)
    assert grey.min() == grey.max() == 60, "an image of one grey level has no contrast"


def test_images_with_other_contrast_are_cached_apart(tmp_path: Path) -> None:
    make = {"source_key": "k", "size": 8, "channels": 1, "folder": tmp_path, "on_broken": "stop"}
    caches = [build_image_cache([exam(1, 7)], **make, autocontrast=value)[0] for value in (None, 1.0)]  # type: ignore[arg-type]
    assert caches[0].path != caches[1].path


@dataclass(frozen=True)
class OnDisk:
    """A view that loads if its file exists."""

    path: str
    name: str = "on disk"

    def load(self) -> np.ndarray:
        if not Path(self.path).exists():
            raise PermissionError(errno.EACCES, "permission denied")
        return np.full((8, 8), 50, np.uint8)


def test_a_view_that_loads_again_is_no_longer_left_out(tmp_path: Path) -> None:
    exams = [exam(1, 7), Exam("e2", "p2", (OnDisk(str(tmp_path / "a")),), "text")]
    _, problems = make_cache(exams, tmp_path / "cache", on_broken="skip")
    assert [(each.exam_id, each.code) for each in problems] == [("e2", "unreadable-file")]
    assert len(make_cache(exams, tmp_path / "cache", on_broken="skip")[1]) == 1
    (tmp_path / "a").touch()
    cache, problems = make_cache(exams, tmp_path / "cache", on_broken="skip")
    assert not problems and cache.images("e2").max() == 50


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"flipped": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[how])


@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_damaged_images_are_made_again(tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = make_cache([exam(1, 7)], tmp_path)
    spoil(first.path, how)
    second, _ = make_cache([exam(1, 7)], tmp_path)
    assert second.images("e1").min() == second.images("e1").max() == 7 and "damaged" in capsys.readouterr().out


def test_damaged_metadata_is_made_again(tmp_path: Path) -> None:
    first, _ = make_cache([exam(1, 7)], tmp_path)
    first.path.with_suffix(".json").write_text("[")
    assert make_cache([exam(1, 7)], tmp_path)[0].images("e1").max() == 7


@pytest.mark.parametrize("late", [False, True])
def test_a_full_disk_ends_with_a_message_and_leaves_nothing(
    tmp_path: Path, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if late:  # a quota, or another process that fills the disk
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with problem("cannot-write", place="images"):
        make_cache([exam(1, 7)], tmp_path)
    assert not [path for path in (tmp_path / "images").iterdir() if path.suffix != ".lock"]


def test_the_remains_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    first, _ = make_cache([exam(1, 7)], tmp_path)
    first.path.with_suffix(".json").unlink()
    left = first.path.with_suffix(".999999.part")
    left.touch()
    of_others = [left.with_name(f"{key}.1.part") for key in ("killed", "alive")]
    for path in of_others:
        path.touch()
        path.with_name(f"{path.name.partition('.')[0]}.lock").touch()
    with file_lock(left.with_name("alive.lock"), "images"):
        make_cache([exam(1, 7)], tmp_path)
    assert [path.exists() for path in (left, *of_others)] == [False, False, True]


def test_a_split_without_a_readable_exam_is_refused(tmp_path: Path) -> None:
    with problem("empty-split", place="split test"):
        _require_exams({"train": [exam(1, 9)], "val": [exam(2, 9)], "test": []}, "left out")


UNGUARDED = """
from pathlib import Path
from grey_exams import exam, make_cache
from framework.runtime.errors import UserError
try:
    make_cache([exam(number, 9) for number in range(70)], Path(__file__).parent)
except UserError as error:
    print(error.code)
    raise
"""


def test_a_script_that_decoders_would_run_again_ends_at_once(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(UNGUARDED)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "unguarded-script" in done.stdout, done
    assert "__main__" in done.stderr
