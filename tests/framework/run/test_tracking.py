"""What a run records, on a disk that is full."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from small_disk import fill, small_disk

from framework import cli
from framework.run.tracking import RECORDS, Tracker


def test_records_on_a_full_disk_end_in_an_error_that_names_the_file_and_keep_those_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk, cli._hooks():
        tracker = Tracker(disk, writes=True, done=0, rewritten=())
        tracker.scalars(1, {"train/loss": 1.0})
        fill(disk)
        with pytest.raises(OSError, match="No space left") as caught:
            for step in range(2, 9999):
                tracker.scalars(step, {"train/loss": 1.0})
        assert caught.value.filename == str(disk / RECORDS)
        time.sleep(0.5)  # the thread of TensorBoard fails too
        with contextlib.suppress(OSError):
            tracker.close()
        lines = (disk / RECORDS).read_text().splitlines()
        assert json.loads(lines[0])["step"] == 1
    assert "Traceback" not in capfd.readouterr().err
