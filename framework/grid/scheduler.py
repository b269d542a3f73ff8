"""Starts the cells of a grid through an executor until all are settled. Several may work on one grid at once.

What it knows it reads from the cells' folders: killed at any moment, another goes on where it stood.
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
from framework.runtime.console import print0, progress_bar

NOT_IN_NAMES = re.compile(r"[^\w.-]+")
LOOKS_S = 1.0  # between two looks at the cells
ENDS_S = 400.0  # that cells may take to save and end


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

    def cells(self) -> Sequence[Cell]:
        """Those that are known."""

    def more(self) -> Cell | None:
        """One more, that is chosen by what the others scored; None: there are no more, or not now."""

    def look(self, statuses: dict[str, Status]) -> None:
        """Heeds what has become of the cells since."""

    @property
    def total(self) -> int:
        """How many there are going to be."""


@dataclass
class Fixed:
    """Cells that are all known beforehand."""

    known: Sequence[Cell]

    def cells(self) -> Sequence[Cell]:
        return self.known

    def more(self) -> Cell | None:
        return None

    def look(self, statuses: dict[str, Status]) -> None:
        """Nothing depends on it."""

    @property
    def total(self) -> int:
        return len(self.known)


@dataclass
class Scheduler:
    """One `grid run`."""

    name: str  # of the grid
    source: Source
    executor: Executor
    attempts: int  # deaths of a cell that count as its failure
    cancel_file: Path  # touched while this one works, it ends
    fail_fast: bool = False
    handles: dict[str, Handle] = field(default_factory=dict)  # by digest: what this scheduler has started
    statuses: dict[str, Status] = field(default_factory=dict)
    not_again: set[str] = field(default_factory=set)  # asked to stop, or beyond help, since this scheduler began
    tried: dict[str, int] = field(default_factory=dict)  # attempts that a cell had when it was started last
    fruitless: dict[str, int] = field(default_factory=dict)  # starts in a row that did not even begin an attempt
    exhausted: bool = False  # the source has no more cells for now
    cancelled_before: int | None = None  # when the file was touched last, as this one began
    failed: bool = False  # a cell, since this scheduler began
    interrupted: int = 0

    def run(self) -> bool:
        """Works until every cell is settled or stopped. True: there are some, and all are done or pruned."""
        self.cancelled_before = _touched(self.cancel_file)
        with _interrupts(self), progress_bar((), total=self.source.total, text=self.name) as bar:
            try:
                while True:
                    self._look()
                    bar.set_postfix_str(self._counts(), refresh=False)
                    bar.update(sum(status in SETTLED for status in self.statuses.values()) - bar.n)
                    if why := self._why_to_end():
                        self._end(why)
                        break
                    self._start()
                    if not self._open():
                        break
                    time.sleep(LOOKS_S)
            finally:
                self.executor.close()
        return bool(self.statuses) and all(status in ("done", PRUNED) for status in self.statuses.values())

    def _look(self) -> None:
        """What has become of the cells; says what has changed."""
        for cell in self.source.cells():
            digest, folder = cell.digest, CellFolder.of(cell)
            before = self.statuses.get(digest)
            now: Status = before if before == "done" else folder.status()  # type: ignore[assignment]
            handle = self.handles.get(digest)
            if handle is not None and handle.state() == "gone":
                del self.handles[digest]
                now = folder.status()  # it may have ended between the two questions
                self._note_fruitless(cell, folder, now)
            elif handle is not None and now == "stopped":
                continue  # a queue that took the machine away starts it again
            if now == "stopped" and before not in (None, "stopped") and folder.was_asked_to_stop:
                self.not_again.add(digest)
            if now == "failed" and before not in (None, "failed"):
                self.failed = True
            if now != before:
                self.statuses[digest] = now
                self._tell(cell, folder, before, now)
        self.source.look(self.statuses)

    def _note_fruitless(self, cell: Cell, folder: CellFolder, now: Status) -> None:
        """Counts jobs that ended before they could write anything down, as where the disk is full or Python missing."""
        digest = cell.digest
        if now not in ("queued", "stopped") or folder.state().attempts != self.tried[digest]:
            self.fruitless.pop(digest, None)
            return
        self.fruitless[digest] = self.fruitless.get(digest, 0) + 1
        if self.fruitless[digest] >= self.attempts and not folder.was_asked_to_stop:
            self.not_again.add(digest)
            print0(f"given up {cell.title}: it does not even begin; {folder.log} ends with: {folder.last_words()}")

    def _tell(self, cell: Cell, folder: CellFolder, before: Status | None, now: Status) -> None:
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
        """As many cells as there is room for."""
        room = self.executor.room()
        waiting = [cell for cell in self.source.cells() if self._may_start(cell)][: max(0, room)]
        self.exhausted = False
        while len(waiting) < room and not self.exhausted:
            cell = self.source.more()
            self.exhausted = cell is None
            if cell is not None and self._may_start(cell):
                waiting.append(cell)
        jobs = []
        for cell in waiting:
            folder = CellFolder.of(cell)
            folder.prepare(cell.recipe)
            folder.stop_file.unlink(missing_ok=True)
            self.tried[cell.digest] = folder.state().attempts
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
        return digest not in self.handles and digest not in self.not_again and status in ("queued", "stopped")

    def _open(self) -> bool:
        """Whether there is a cell that something may still become of, or may be one that is not known yet."""
        if not self.exhausted and len(self.source.cells()) < self.source.total:
            return True
        statuses = [(cell, self.statuses.get(cell.digest, "queued")) for cell in self.source.cells()]
        return any(
            cell.digest in self.handles or status == "running" or self._may_start(cell) for cell, status in statuses
        )

    def _why_to_end(self) -> str | None:
        if self.interrupted:
            return "interrupted; once more leaves at once, and the cells save and end by themselves"
        if _touched(self.cancel_file) != self.cancelled_before:
            return "the grid was cancelled"
        if self.fail_fast and self.failed:
            return "a cell has failed"
        return None

    def _end(self, why: str) -> None:
        """Ends what this scheduler has started, and waits until it has saved."""
        print0(f"ending: {why}")
        for handle in self.handles.values():
            handle.cancel()
        patience = time.monotonic() + ENDS_S
        while self.interrupted < 2 and time.monotonic() < patience:
            self._look()
            if not self.handles:
                break
            time.sleep(LOOKS_S)
        if self.handles:
            print0(f"{len(self.handles)} cells have not ended yet; `grid status` tells when they have")

    def _counts(self) -> str:
        found = list(self.statuses.values())
        return ", ".join(f"{found.count(status)} {status}" for status in dict.fromkeys(found))


def _touched(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@contextmanager
def _interrupts(scheduler: Scheduler) -> Iterator[None]:
    """Counts Ctrl-C and SIGTERM, which a scheduler heeds at its next look."""

    def heard(number: int, frame: FrameType | None) -> None:
        scheduler.interrupted += 1

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def forget(cells: Iterable[Cell], statuses: Sequence[Status]) -> list[Cell]:
    """Lets cells of these statuses be started again; gives those that it has changed."""
    changed = []
    for cell in cells:
        folder = CellFolder.of(cell)
        if folder.status() in statuses:
            folder.change(status="queued", deaths=0, reason=None)
            changed.append(cell)
    return changed
