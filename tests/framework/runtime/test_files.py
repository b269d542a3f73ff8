"""Locks and atomic writes."""

import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT

from framework.runtime.files import atomic_write, read_lines

MAKES = """
import sys, time
from pathlib import Path
from framework.runtime.files import file_lock
folder = Path(sys.argv[1])
with file_lock(folder / "work.lock", "topics"):
    if not (folder / "made").exists():
        time.sleep(1.0)
        with (folder / "made").open("a") as file:
            file.write("once\\n")
"""


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", MAKES, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_lock_lets_one_process_work_and_the_others_report_that_they_wait(tmp_path):
    makers = [start(tmp_path) for _ in range(3)]
    outputs = [maker.communicate(timeout=60)[0] for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0, 0]
    assert (tmp_path / "made").read_text() == "once\n"
    assert sorted(outputs)[0] == "" and sorted(outputs)[-1] == "waiting for another run that makes the same topics\n"


def test_a_lock_is_released_when_its_process_ends(tmp_path):
    dies = "import os, sys; from pathlib import Path; from framework.runtime.files import atomic_write, file_lock\n"
    dies += "with file_lock(Path(sys.argv[1]) / 'work.lock', 'topics'): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", dies, str(tmp_path)], cwd=ROOT).returncode == 9
    maker = start(tmp_path)
    assert maker.communicate(timeout=60)[0] == "" and (tmp_path / "made").exists()


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "\ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_json_lines_end_at_line_feeds_only(tmp_path):
    rows = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x1cc"]
    atomic_write(tmp_path / "rows.jsonl", "\n".join(rows))
    assert [line.rstrip("\n") for line in read_lines(tmp_path / "rows.jsonl")] == rows
