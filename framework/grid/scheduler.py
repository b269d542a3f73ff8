"""Starts the cells of a grid through an executor until all are settled. Several schedulers may share a grid.

Its state is in the folders of the cells: if it is killed at any moment, another scheduler continues.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

import framework
from framework.grid.cell_folder import PRUNED, SETTLED, CellFolder, Status
from framework.grid.cells import Cell
from framework.grid.executor import Executor, Handle, Job
from framework.runtime.console import print0
from framework.runtime.live import ProgressBar
from framework.runtime.signals import handle_signals

NOT_IN_NAMES = re.compile(r"[^\w.-]+")
POLL_S = 1.0
END_S = 400.0  # that cells may take to save and end


def this_code() -> tuple[str, ...]:
    """Python that imports the code running here, not another installed copy or a package in the working folder."""
    python = (sys.executable, "-P")
    root = Path(framework.__file__).parents[1]
    if root == Path(sysconfig.get_path("purelib")):
        return python
    before = os.environ.get("PYTHONPATH")
    return "env", f"PYTHONPATH={root}{os.pathsep + before if before else ''}", *python


class Source(Protocol):
    """Where a scheduler gets its cells from."""

    total: int  # number of cells in the end

    def cells(self) -> Sequence[Cell]:
        """All cells so far."""

    def more(self) -> Cell | None:
        """Proposes one more cell from the scores so far; None if there is none at the moment."""

    def update(self, statuses: dict[str, Status]) -> None:
        """Receives the current status of each cell."""


class FixedCells:
    """Cells that are all known in advance."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells, self.total = cells, len(cells)

    def cells(self) -> Sequence[Cell]:
        return self._cells

    def more(self) -> Cell | None:
        return None

    def update(self, statuses: dict[str, Status]) -> None:
        pass


@dataclass
class Scheduler:
    """One `grid run`."""

    name: str  # of the grid
    source: Source
    executor: Executor
    attempts: int  # crashes after which a cell counts as failed
    cancel_file: Path  # touching it ends the scheduler
    fail_fast: bool = False
    handles: dict[str, Handle] = field(default_factory=dict)  # by digest, of the cells that this scheduler started
    statuses: dict[str, Status] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)  # stopped on request, or unable to start, under this scheduler
    attempts_at_start: dict[str, int] = field(default_factory=dict)  # attempts of a cell at its latest start
    failed_starts: dict[str, int] = field(default_factory=dict)  # consecutive starts without an attempt
    is_exhausted: bool = False  # the source has no more cells at the moment
    cancel_time: int | None = None  # of the cancel file when this scheduler started
    has_failure: bool = False  # under this scheduler
    interrupts: int = 0

    def run(self) -> bool:
        """Runs until every cell is settled or stopped. Returns whether there are cells and all are done or pruned."""
        self.cancel_time = _modified(self.cancel_file)
        bar = ProgressBar[Cell]((), total=self.source.total, text=self.name)
        with _counting_interrupts(self), bar:
            try:
                while True:
                    self._update()
                    bar.note = self._counts()
                    bar.update(sum(status in SETTLED for status in self.statuses.values()) - bar.done)
                    if reason := self._end_reason():
                        self._end(reason)
                        break
                    self._start()
                    if not self._has_work():
                        break
                    time.sleep(POLL_S)
            finally:
                self.executor.close()
        return bool(self.statuses) and all(status in ("done", PRUNED) for status in self.statuses.values())

    def _update(self) -> None:
        """Reads the status of each cell and prints changes."""
        for cell in self.source.cells():
            digest, folder = cell.digest, CellFolder.of(cell)
            before = self.statuses.get(digest)
            now: Status = before if before == "done" else folder.status()  # type: ignore[assignment]
            handle = self.handles.get(digest)
            if handle is not None and handle.state() == "gone":
                del self.handles[digest]
                now = folder.status()  # it may have ended in between
                self._count_failed_start(cell, folder, now)
            elif handle is not None and now == "stopped":
                continue  # preempted: the queue starts it again
            if now == "stopped" and before not in (None, "stopped") and folder.has_stop_request:
                self.given_up.add(digest)
            if now == "failed" and before not in (None, "failed"):
                self.has_failure = True
            if now != before:
                self.statuses[digest] = now
                self._print(cell, folder, before, now)
        self.source.update(self.statuses)

    def _count_failed_start(self, cell: Cell, folder: CellFolder, now: Status) -> None:
        """Counts jobs that ended before an attempt, for example because the disk is full or Python is missing."""
        digest = cell.digest
        if now not in ("queued", "stopped") or folder.state().attempts != self.attempts_at_start[digest]:
            self.failed_starts.pop(digest, None)
            return
        self.failed_starts[digest] = self.failed_starts.get(digest, 0) + 1
        if self.failed_starts[digest] >= self.attempts and not folder.has_stop_request:
            self.given_up.add(digest)
            end = f"{folder.log} ends with: {folder.last_log_line()}"
            print0(f"given up {cell.title}: its process does not start; {end}")

    def _print(self, cell: Cell, folder: CellFolder, before: Status | None, now: Status) -> None:
        if now == "running":
            holder = folder.holder()
            print0(f"running  {cell.title}   {folder.path}" + (f" on {holder.host}" if holder else ""))
        elif before is not None and now == "queued":
            print0(f"again    {cell.title}: {folder.state().reason}")
        elif before is not None and now == "done":
            print0(f"done     {cell.title}   {folder.state().seconds:.0f} s")
        elif before is not None:
            print0(f"{now:8} {cell.title}: {folder.state().reason}   {folder.log}")

    def _start(self) -> None:
        """Starts as many cells as there is room for."""
        room = self.executor.room()
        waiting = [cell for cell in self.source.cells() if self._may_start(cell)][: max(0, room)]
        self.is_exhausted = False
        while len(waiting) < room and not self.is_exhausted:
            cell = self.source.more()
            self.is_exhausted = cell is None
            if cell is not None and self._may_start(cell):
                waiting.append(cell)
        jobs = []
        for cell in waiting:
            folder = CellFolder.of(cell)
            folder.prepare(cell.recipe)
            folder.stop_file.unlink(missing_ok=True)
            self.attempts_at_start[cell.digest] = folder.state().attempts
            self.statuses.setdefault(cell.digest, "queued")
            command = (
                *this_code(), "-m", "framework.grid.cell_process", str(folder.path),
                "--processes", str(self.executor.processes), "--attempts", str(self.attempts),
            )  # fmt: skip
            jobs.append(Job(f"{NOT_IN_NAMES.sub('-', self.name)}-{cell.digest}", command, folder.log))
        for cell, handle in zip(waiting, self.executor.start(jobs), strict=True):
            self.handles[cell.digest] = handle

    def _may_start(self, cell: Cell) -> bool:
        digest, status = cell.digest, self.statuses.get(cell.digest, "queued")
        return digest not in self.handles and digest not in self.given_up and status in ("queued", "stopped")

    def _has_work(self) -> bool:
        """Whether a cell runs or may start, or the source may have more."""
        if not self.is_exhausted and len(self.source.cells()) < self.source.total:
            return True
        statuses = [(cell, self.statuses.get(cell.digest, "queued")) for cell in self.source.cells()]
        return any(
            cell.digest in self.handles or status == "running" or self._may_start(cell) for cell, status in statuses
        )

    def _end_reason(self) -> str | None:
        if self.interrupts:
            return "interrupted; a second Ctrl-C leaves at once, and the cells save and end by themselves"
        if _modified(self.cancel_file) != self.cancel_time:
            return "the grid was cancelled"
        if self.fail_fast and self.has_failure:
            return "a cell has failed"
        return None

    def _end(self, reason: str) -> None:
        """Ends the cells that this scheduler started, and waits until they have saved."""
        print0(f"ending: {reason}")
        for handle in self.handles.values():
            handle.cancel()
        deadline = time.monotonic() + END_S
        while self.interrupts < 2 and time.monotonic() < deadline:
            self._update()
            if not self.handles:
                break
            time.sleep(POLL_S)
        if self.handles:
            print0(f"{len(self.handles)} cells have not ended yet; see `grid status`")

    def _counts(self) -> str:
        found = list(self.statuses.values())
        return ", ".join(f"{found.count(status)} {status}" for status in dict.fromkeys(found))


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@contextmanager
def _counting_interrupts(scheduler: Scheduler) -> Iterator[None]:
    """Counts Ctrl-C, SIGTERM and SIGHUP for the scheduler, which reads the count in its loop."""

    def count(number: int, frame: FrameType | None) -> None:
        scheduler.interrupts += 1

    before = handle_signals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), count)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def requeue(cells: Iterable[Cell], statuses: Sequence[Status]) -> list[Cell]:
    """Queues the cells that have one of these statuses, and returns them."""
    changed = []
    for cell in cells:
        folder = CellFolder.of(cell)
        if folder.status() in statuses:
            folder.change(status="queued", crashes=0, reason=None)
            changed.append(cell)
    return changed
