"""One launch of two processes for all canaries of wrappers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def wrapper_facts() -> list[dict[str, Any]]:
    """What wrappers_worker.py found, on each of two processes, on gloo."""
    worker = str(Path(__file__).with_name("wrappers_worker.py"))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*start, worker], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("facts")).split(" ", 1)[1])
