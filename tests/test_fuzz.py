"""A short run of the fuzzer; `make fuzz` is the long one."""

import subprocess
import sys

from harness import ROOT


def test_changed_recipes_and_grids_are_accepted_or_refused():
    """The same cases each time, of commands that read and train nothing."""
    command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), "--seed", "0", "--cases", "200", "--quick"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
