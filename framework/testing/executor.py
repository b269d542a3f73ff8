"""What an executor promises. The check starts real commands, which write files."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from framework.grid.executor import Handle, Job
from framework.testing.promise import Make, hold, made, promised

WRITES = "import pathlib, sys; print('printed'); pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
WAITS = """
import pathlib, signal, sys, time

def saved(*_):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(75)

signal.signal(signal.SIGTERM, saved)
pathlib.Path(sys.argv[2]).write_text("ready")
time.sleep(600)
"""
WORD = "a b'c\"$d"  # that a shell would take apart


def check_executor(make: Make, *, patience_s: float = 60.0) -> None:
    """Holds an executor to its contract.

    Args:
        make: The class, or what makes one; with room for two commands at once.
        patience_s: Seconds that a command may take from its start to its end. [s]

    Raises:
        BrokenPromise: the first promise that it does not keep.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        executor = made(make, jobs=2, folder=folder / "own")
        try:
            _declared(executor)
            _runs(executor, folder, patience_s)
            _cancels(executor, folder, patience_s)
        finally:
            executor.close()


def _declared(executor: Any) -> None:
    processes = getattr(executor, "processes", None)
    hold(
        isinstance(processes, int) and processes > 0,
        "`processes` tells how many processes a cell has",
        found=processes,
        expected="a whole number above 0",
        fix="set self.processes in __init__",
    )
    room = executor.room()
    hold(
        isinstance(room, int) and room >= 2,
        "an executor that runs nothing has room for as many jobs as it was made for",
        found=f"room() = {room}, made with jobs=2",
        expected="2 or more",
        fix="count only the jobs that are not gone",
    )


def _runs(executor: Any, folder: Path, patience_s: float) -> None:
    jobs = []
    for number in range(2):
        command = (sys.executable, "-c", WRITES, str(folder / f"wrote-{number}"), f"{WORD}{number}")
        jobs.append(Job(f"check-{number}", command, folder / f"log-{number}" / "log.txt"))
    handles = _started(executor, jobs)
    for job, handle in zip(jobs, handles):
        _wait(handle, partial(_is_gone, handle), "a command that has ended is gone", patience_s)
        target, word = Path(job.command[3]), job.command[4]
        hold(
            target.is_file() and target.read_text() == word,
            "a command is run with its words as they are",
            found=repr(target.read_text()) if target.is_file() else "it was not run",
            expected=repr(word),
            fix="start it without a shell, from a list of words",
        )
        log = job.log.read_text() if job.log.is_file() else ""
        hold(
            "printed" in log,
            "what a command prints is added to its log",
            found=repr(log),
            expected="'printed' in it",
            fix="make the log's folder, open the log for appending, and hand it to the command",
        )
    hold(
        executor.room() >= 2,
        "jobs that are gone leave their room to others",
        found=f"room() = {executor.room()}",
        expected="2 or more",
        fix="count only the jobs that are not gone",
    )


def _cancels(executor: Any, folder: Path, patience_s: float) -> None:
    saved, ready = folder / "saved", folder / "ready"
    job = Job("check-cancel", (sys.executable, "-c", WAITS, str(saved), str(ready)), folder / "cancel.txt")
    (handle,) = _started(executor, [job])
    try:
        _wait(handle, ready.exists, "a command is started", patience_s)
        state = handle.state()
        hold(state == "running", "a command that runs is running", found=state, expected="running", fix="mend state()")
    finally:
        handle.cancel()
    _wait(handle, partial(_is_gone, handle), "a command that was cancelled ends", patience_s)
    hold(
        saved.exists(),
        "a command that is cancelled gets SIGTERM, and time to save",
        found="it was ended without",
        expected="SIGTERM, and some minutes until it is killed",
        fix="send SIGTERM to the command itself",
    )
    handle.cancel()  # of what is gone: nothing


def _started(executor: Any, jobs: list[Job]) -> list[Handle]:
    with promised("an executor starts jobs", expected="handles", fix="see framework/grid/executor.py"):
        handles: list[Handle] = executor.start(jobs)
    hold(
        len(handles) == len(jobs),
        "there is a handle for each job, in their order",
        found=len(handles),
        expected=len(jobs),
        fix="return one for each",
    )
    return handles


def _is_gone(handle: Handle) -> bool:
    return handle.state() == "gone"


def _wait(handle: Handle, happens: Callable[[], bool], promise: str, patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while not happens():
        hold(
            time.monotonic() < end,
            promise,
            found=f"after {patience_s:.0f} s its state is {handle.state()}",
            expected="that it happens soon",
            fix="mend start() or state(), or raise patience_s",
        )
        time.sleep(0.1)
