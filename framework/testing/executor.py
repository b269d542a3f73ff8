"""The contract of an executor. The check starts real commands, which write files."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from framework.grid.executor import Handle, Job
from framework.testing.contract import Make, build_plugin, require, runs

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
WORD = "a b'c\"$d"  # a shell would split it


def check_executor(make: Make, *, patience_s: float = 60.0) -> None:
    """Checks an executor against its contract.

    Args:
        make: The class, or a function that builds one; with room for two commands at once.
        patience_s: Seconds that a command may take from its start to its end. [s]

    Raises:
        ContractError: the first rule that it breaks.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        executor = build_plugin(make, jobs=2, folder=folder / "own")
        try:
            _declared(executor)
            _runs(executor, folder, patience_s)
            _cancels(executor, folder, patience_s)
        finally:
            executor.close()


def _declared(executor: Any) -> None:
    processes = getattr(executor, "processes", None)
    require(
        isinstance(processes, int) and processes > 0,
        "`processes` is the number of processes per cell",
        found=processes,
        expected="a whole number above 0",
        fix="set self.processes in __init__",
    )
    room = executor.room()
    require(
        isinstance(room, int) and room >= 2,
        "an idle executor has room for `jobs` jobs",
        found=f"room() = {room}, built with jobs=2",
        expected="2 or more",
        fix="count only jobs that are not gone",
    )


def _runs(executor: Any, folder: Path, patience_s: float) -> None:
    jobs = []
    for number in range(2):
        command = (sys.executable, "-c", WRITES, str(folder / f"wrote-{number}"), f"{WORD}{number}")
        jobs.append(Job(f"check-{number}", command, folder / f"log-{number}" / "log.txt"))
    handles = _started(executor, jobs)
    for job, handle in zip(jobs, handles):
        _wait(handle, partial(_is_gone, handle), "an ended command is gone", patience_s)
        target, word = Path(job.command[3]), job.command[4]
        require(
            target.is_file() and target.read_text() == word,
            "a command gets its arguments unchanged",
            found=repr(target.read_text()) if target.is_file() else "it did not run",
            expected=repr(word),
            fix="start it from a list of arguments, without a shell",
        )
        log = job.log.read_text() if job.log.is_file() else ""
        require(
            "printed" in log,
            "the output of a command is appended to its log",
            found=repr(log),
            expected="'printed' in it",
            fix="create the log's folder, and pass the log, opened for appending, to the command",
        )
    require(
        executor.room() >= 2,
        "ended jobs free their room",
        found=f"room() = {executor.room()}",
        expected="2 or more",
        fix="count only jobs that are not gone",
    )


def _cancels(executor: Any, folder: Path, patience_s: float) -> None:
    saved, ready = folder / "saved", folder / "ready"
    job = Job("check-cancel", (sys.executable, "-c", WAITS, str(saved), str(ready)), folder / "cancel.txt")
    (handle,) = _started(executor, [job])
    try:
        _wait(handle, ready.exists, "a command starts", patience_s)
        state = handle.state()
        require(
            state == "running",
            "a running command has the state running",
            found=state,
            expected="running",
            fix="correct state()",
        )
    finally:
        handle.cancel()
    _wait(handle, partial(_is_gone, handle), "a cancelled command ends", patience_s)
    require(
        saved.exists(),
        "a cancelled command gets SIGTERM and time to save",
        found="it was killed without",
        expected="SIGTERM, and minutes before it is killed",
        fix="send SIGTERM to the command itself",
    )
    handle.cancel()  # must do nothing


def _started(executor: Any, jobs: list[Job]) -> list[Handle]:
    with runs("start(jobs) returns handles", expected="handles", fix="see framework/grid/executor.py"):
        handles: list[Handle] = executor.start(jobs)
    require(
        len(handles) == len(jobs),
        "start(jobs) returns a handle for each job, in order",
        found=len(handles),
        expected=len(jobs),
        fix="return one per job",
    )
    return handles


def _is_gone(handle: Handle) -> bool:
    return handle.state() == "gone"


def _wait(handle: Handle, happens: Callable[[], bool], rule: str, patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while not happens():
        require(
            time.monotonic() < end,
            rule,
            found=f"after {patience_s:.0f} s its state is {handle.state()}",
            expected="sooner",
            fix="correct start() or state(), or raise patience_s",
        )
        time.sleep(0.1)
