"""Jobs that write notes, for the tests of executor `slurm` with a fake and with a real Slurm."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from framework.grid.executor import Handle, Job

PATIENCE_S = 60

# Takes some seconds to save after SIGTERM. Ends after enough starts, or when a file exists.
CELL = """
import os, pathlib, signal, sys, time
notes, attempts, saves = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
def note(text):
    with notes.open("a") as file:
        file.write(text + "\\n")
def save(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(saves)
    note("saved")
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
note("started")
print("a line for the log", flush=True)
while notes.read_text().count("started") < attempts and not notes.with_suffix(".free").exists():
    time.sleep(0.05)
note("done")
"""


def cell(folder: Path, name: str = "cell", attempts: int = 1, saves: float = 0.3) -> Job:
    command = (sys.executable, "-c", CELL, str(folder / name), str(attempts), str(saves))
    return Job(name, command, folder / "logs" / f"{name}.txt")


def free(folder: Path, name: str = "cell") -> None:
    """Lets a cell end."""
    (folder / f"{name}.free").touch()


def notes(folder: Path, name: str = "cell") -> list[str]:
    path = folder / name
    return path.read_text().split() if path.exists() else []


def states(handles: Sequence[Handle]) -> list[str]:
    return [handle.state() for handle in handles]


def wait(until: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE_S} s"
        time.sleep(0.1)


def wait_until_gone(handles: Sequence[Handle]) -> None:
    wait(lambda: set(states(handles)) == {"gone"}, "gone")
