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

import psutil

BEAT_S = 10.0  # from one touch to the next
DEAD_S = 90.0  # without one: the holder, on a machine that cannot be asked, is taken for dead
NAME = re.compile(r"lease-(\d+)")


@dataclass(frozen=True)
class Holder:
    """The process that trains a cell."""

    machine: str
    host: str  # for people
    pid: int
    born: float  # when the process began, since numbers of processes come again
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

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def number(self) -> int:
        return _number(self.path)

    def beat(self) -> bool:
        """Tells that the holder lives. False: another process has taken the cell over."""
        newest = _newest(self.path.parent)
        if newest is None or newest != self.path:
            return False
        with contextlib.suppress(OSError):  # a disk that is away for a moment; the next beat tells
            os.utime(self.path)
        return True

    def release(self) -> None:
        for path in self.path.parent.glob("lease-*"):
            if NAME.fullmatch(path.name) and _number(path) <= self.number:
                path.unlink(missing_ok=True)


def take(folder: Path) -> Lease | None:
    """The lease of a cell; None where a living process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = _newest(folder)
    if newest is not None and _lives(newest):
        return None
    path = folder / f"lease-{1 if newest is None else _number(newest) + 1}"
    me = psutil.Process()
    since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
    holder = Holder(this_machine(), socket.gethostname(), me.pid, me.create_time(), since)
    part = Path(tempfile.mkstemp(dir=folder, prefix=".lease-")[1])
    try:
        part.write_text(json.dumps(asdict(holder)), encoding="utf-8")
        os.link(part, path)  # whole at once, and only where there is none of this name
    except FileExistsError:
        return None
    finally:
        part.unlink()
    return Lease(path)


def take_when_dead(folder: Path) -> Lease | None:
    """As `take`, but where the holder may have died on another machine, waits until its heart has stood still for long
    enough; a queue that starts a cell elsewhere is quicker than that.
    """
    while (lease := take(folder)) is None:
        newest = _newest(folder)
        holder = None if newest is None else _read(newest)
        if newest is None or holder is None:
            continue  # released meanwhile
        if holder.machine == this_machine() or _beats(newest):
            return None
    return lease


def holder_of(folder: Path) -> Holder | None:
    """Who trains the cell now; None: nobody, or one that is dead."""
    newest = _newest(folder)
    return _read(newest) if newest is not None and _lives(newest) else None


def _number(path: Path) -> int:
    found = NAME.fullmatch(path.name)
    assert found is not None, path
    return int(found[1])


def _newest(folder: Path) -> Path | None:
    return max((path for path in folder.glob("lease-*") if NAME.fullmatch(path.name)), key=_number, default=None)


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # released meanwhile, or no lease of ours


def _lives(path: Path) -> bool:
    holder = _read(path)
    if holder is None:
        return False
    if holder.machine == this_machine():
        try:
            process = psutil.Process(holder.pid)
            return abs(process.create_time() - holder.born) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    try:
        return _disk_time(path.parent) - path.stat().st_mtime < DEAD_S
    except FileNotFoundError:
        return False


def _beats(path: Path) -> bool:
    """Whether a lease is touched, or released, within the time of two beats."""
    try:
        before = path.stat().st_mtime
        time.sleep(2 * BEAT_S)
        return path.stat().st_mtime != before
    except FileNotFoundError:
        return False


def _disk_time(folder: Path) -> float:
    """Now, by the clock that stamps the leases: that of the disk's server, and not of this machine."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
        return os.fstat(file.fileno()).st_mtime
