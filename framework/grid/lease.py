"""The lease of a cell: one process on one machine trains it, and another may take over once that process is dead.

A lease is a file `lease-N` in the cell's folder that its holder touches every `BEAT_S` seconds. A process that finds
the newest lease dead creates `lease-N+1`, which the file system allows only one process to do, so no process deletes
the lease of another.

`filelock.SoftFileLease` (4.2.12) is no replacement. On NFS, which cannot exchange two names, it never takes over from a
dead machine. It notices a killed holder that is a zombie only after the whole lease duration, this file at once. It has
no public way to read who holds the lease, which `grid status` shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from framework.grid.state_file import read_state
from framework.runtime.processes import process_start_time

BEAT_S = 10.0  # between two heartbeats
DEAD_S = 90.0  # without a heartbeat after which a holder on another machine counts as dead
NAME = re.compile(r"lease-(\d+)")


@dataclass(frozen=True)
class Holder:
    """The process that trains a cell."""

    machine: str
    host: str
    pid: int
    start_time: float  # see framework.runtime.processes
    since: str  # local time at which the lease was taken


def this_machine() -> str:
    """Identifies a machine, or a container with process ids of its own."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux only
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return "/".join(parts)


class Lease:
    """A lease that this process holds."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.path = _path(folder, number)

    def beat(self) -> bool:
        """Renews the lease. Returns False if another process has taken the cell over."""
        try:
            numbers = _numbers(self.folder)
        except OSError:
            return True  # the disk does not answer for a moment; the next beat decides
        if self.number not in numbers or max(numbers) > self.number:
            return False
        with contextlib.suppress(OSError):
            os.utime(self.path)
        return True

    def release(self) -> None:
        for number in _numbers(self.folder):
            if number <= self.number:
                _path(self.folder, number).unlink(missing_ok=True)


def take(folder: Path) -> Lease | None:
    """Takes the lease of a cell; None if a living process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        number = max(_numbers(folder), default=0)
        try:
            if number and _is_alive(_path(folder, number)):
                return None
        except FileNotFoundError:
            continue  # released in the meantime
        lease = Lease(folder, number + 1)
        if not _write(lease.path):
            return None
        # While this process read a dead lease, all may have been released and another process may have taken number 1.
        for other in _numbers(folder):
            with contextlib.suppress(FileNotFoundError):
                if other != lease.number and _is_alive(_path(folder, other)):
                    lease.path.unlink(missing_ok=True)
                    return None
        return lease


def take_when_dead(folder: Path) -> Lease | None:
    """Like `take`, but waits while the holder may have died on another machine: a queue may start the cell here sooner
    than `DEAD_S` after the other machine is lost.
    """
    while (lease := take(folder)) is None:
        newest = _path(folder, max(_numbers(folder), default=0))
        try:
            if _read(newest).machine == this_machine() or _is_renewed(newest):
                return None
        except FileNotFoundError:
            continue  # released in the meantime
    return lease


def holder_of(folder: Path) -> Holder | None:
    """The living process that trains the cell; None without one."""
    try:
        numbers = _numbers(folder)
        newest = _path(folder, max(numbers)) if numbers else None
        return _read(newest) if newest is not None and _is_alive(newest) else None
    except FileNotFoundError:
        return None


def _path(folder: Path, number: int) -> Path:
    return folder / f"lease-{number}"


def _numbers(folder: Path) -> list[int]:
    return [int(found[1]) for path in folder.iterdir() if (found := NAME.fullmatch(path.name))]


def _write(path: Path) -> bool:
    """Creates a lease file atomically; False if it exists."""
    start_time = process_start_time(os.getpid())
    assert start_time is not None, "this process is alive"
    since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
    holder = Holder(this_machine(), socket.gethostname(), os.getpid(), start_time, since)
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=".lease-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(holder), file)
        os.link(part, path)
    except FileExistsError:
        return False
    finally:
        Path(part).unlink()
    return True


def _read(path: Path) -> Holder:
    return read_state(Holder, path, "Delete the file if no process trains this cell.")


def _is_alive(path: Path) -> bool:
    """Whether the holder is alive; True if the file cannot be read. Raises FileNotFoundError without a file."""
    try:
        holder = _read(path)
        if holder.machine == this_machine():
            return process_start_time(holder.pid) == holder.start_time
        return _disk_time(path.parent) - path.stat().st_mtime < DEAD_S
    except FileNotFoundError:
        raise
    except OSError:
        return True


def _is_renewed(path: Path) -> bool:
    """Whether the lease is renewed within two heartbeats. Raises FileNotFoundError if it is released."""
    before = path.stat().st_mtime
    time.sleep(2 * BEAT_S)
    return path.stat().st_mtime != before


def _disk_time(folder: Path) -> float:
    """The time on the clock that stamps the leases, which is the file server's and not this machine's."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
            return os.fstat(file.fileno()).st_mtime
    except PermissionError:  # a read-only user
        return time.time()
