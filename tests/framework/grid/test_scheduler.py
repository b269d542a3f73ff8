"""The command of a cell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT

from framework.grid.cell_process import COMMAND_LINE
from framework.grid.scheduler import this_code


def test_a_cell_runs_the_code_of_its_scheduler_and_not_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed" / "framework").mkdir(parents=True)
    (tmp_path / "installed" / "framework" / "__init__.py").write_text("")
    (tmp_path / "installed" / "more.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    program = "import framework, more; print(framework.__file__, more.__file__, sep=chr(10))"
    done = subprocess.run([*this_code(), "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    found, kept = done.stdout.splitlines()
    assert Path(found) == ROOT / "framework" / "__init__.py"
    assert Path(kept) == tmp_path / "installed" / "more.py", "the user's PYTHONPATH is kept"
    assert os.environ["PYTHONPATH"] == str(tmp_path / "installed")


def test_packages_in_the_working_folder_do_not_shadow_ours(tmp_path: Path) -> None:
    for name in ("framework", "plugins", "recipes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError(__name__)")
    show = "import framework, plugins; print(framework.__file__)"
    done = subprocess.run([*this_code(), "-c", show], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT / "framework" / "__init__.py"
    words = ["data", "make", "smoke", "made", "data.dataset.exams=12"]  # imports a plugin
    done = subprocess.run([sys.executable, str(COMMAND_LINE), *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
