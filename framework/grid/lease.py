"""Who trains a cell: one process at a time, whichever of several machines it is on, and only while it lives.

A lease is a file `lease-N` in the cell's folder, which its holder touches now and then. Whoever finds the newest one
dead makes `lease-N+1`, which the file system lets only one process do; so nobody deletes a lease that is not his own.
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

from framework.runtime.processes import process_start_time

BEAT_S = 10.0  # from one touch to the next
DEAD_S = 90.0  # without one: the holder, on a machine that cannot be asked, is taken for dead
NAME = re.compile(r"lease-(\d+)")


@dataclass(frozen=True)
class Holder:
    """The process that trains a cell."""

    machine: str
    host: str  # for people
    pid: int
    born: float  # see framework.runtime.processes
    since: str  # local time, when the lease was taken


def this_machine() -> str:
    """Tells machines apart, and containers that call their processes by the same numbers."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # neither is there but on Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return "/".join(parts)


class Lease:
    """A lease that this process holds."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.path = _path(folder, number)

    def beat(self) -> bool:
        """Tells that the holder lives. False: another process has taken the cell over."""
        try:
            numbers = _numbers(self.folder)
        except OSError:
            return True  # a disk that is away for a moment; the next beat tells
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
    """The lease of a cell; None where a living process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        number = max(_numbers(folder), default=0)
        try:
            if number and _lives(_path(folder, number)):
                return None
        except FileNotFoundError:
            continue  # released meanwhile: look again
        lease = Lease(folder, number + 1)
        if not _write(lease.path):
            return None
        # While this process looked at a dead lease, all may have been released, and another have begun at 1 again.
        if any(_lives_still(_path(folder, other)) for other in _numbers(folder) if other != lease.number):
            lease.path.unlink(missing_ok=True)
            return None
        return lease


def take_when_dead(folder: Path) -> Lease | None:
    """As `take`, but where the holder may have died on another machine, waits until its heart has stood still for long
    enough; a queue that starts a cell elsewhere is quicker than that.
    """
    while (lease := take(folder)) is None:
        newest = _path(folder, max(_numbers(folder), default=0))
        try:
            if _read(newest).machine == this_machine() or _beats(newest):
                return None
        except FileNotFoundError:
            continue  # released meanwhile
    return lease


def holder_of(folder: Path) -> Holder | None:
    """Who trains the cell now; None: nobody, or one that is dead."""
    try:
        newest = _path(folder, max(_numbers(folder)))
        return _read(newest) if _lives(newest) else None
    except (ValueError, FileNotFoundError):
        return None


def _path(folder: Path, number: int) -> Path:
    return folder / f"lease-{number}"


def _numbers(folder: Path) -> list[int]:
    return [int(found[1]) for path in folder.iterdir() if (found := NAME.fullmatch(path.name))]


def _write(path: Path) -> bool:
    """Makes a lease, whole at once; False where there is one of this name."""
    born = process_start_time(os.getpid())
    assert born is not None, "this process lives"
    since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
    holder = Holder(this_machine(), socket.gethostname(), os.getpid(), born, since)
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
    return Holder(**json.loads(path.read_text(encoding="utf-8")))


def _lives(path: Path) -> bool:
    """Raises FileNotFoundError where the lease is gone. One that cannot be read for another reason counts as alive."""
    try:
        holder = _read(path)
        if holder.machine == this_machine():
            return process_start_time(holder.pid) == holder.born
        return _disk_time(path.parent) - path.stat().st_mtime < DEAD_S
    except FileNotFoundError:
        raise
    except OSError:
        return True


def _lives_still(path: Path) -> bool:
    try:
        return _lives(path)
    except FileNotFoundError:
        return False


def _beats(path: Path) -> bool:
    """Whether a lease is touched within the time of two beats. Raises FileNotFoundError where it is released."""
    before = path.stat().st_mtime
    time.sleep(2 * BEAT_S)
    return path.stat().st_mtime != before


def _disk_time(folder: Path) -> float:
    """Now, by the clock that stamps the leases: that of the disk's server, and not of this machine."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
            return os.fstat(file.fileno()).st_mtime
    except PermissionError:  # who may only look
        return time.time()
