"""What several tests build on: small parts, and a run of the smoke recipe that is trained once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads that wait for one another only cost time
os.environ["ACCELERATE_USE_CPU"] = os.environ.get("ACCELERATE_USE_CPU", "true")


def launch(*words: str, cwd: Path, processes: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Types a command of launch.py as a user would, from another folder, on one or more processes."""
    start = [sys.executable, str(ROOT / "launch.py")]
    if processes > 1:
        flags = ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", "0"]
        start = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(ROOT / "launch.py")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run in; its image cache serves all tests."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def smoke_run(work: Path) -> Path:
    """The folder of a finished run of recipes/smoke.yaml."""
    launch(str(ROOT / "recipes" / "smoke.yaml"), "run.name=first", cwd=work)
    return work / "runs" / "smoke" / "first"
