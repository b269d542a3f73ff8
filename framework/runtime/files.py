"""Files that are written whole or not at all, whoever reads them meanwhile and whatever ends the process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from framework.runtime.console import print0


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes beside `path` under a name of its own, then renames. Text is written in UTF-8."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        sync_file(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Returns when the file's bytes are on the disk, and not in a memory that a power cut empties."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The same for the names in a folder."""
    there = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(there)
    finally:
        os.close(there)


def digest(path: Path) -> str:
    """The SHA-256 of a file, which is read piece by piece, since weights may be larger than the memory."""
    with path.open("rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


@contextlib.contextmanager
def one_at_a_time(path: Path, doing: str) -> Iterator[None]:
    """Holds a lock in the file `path`, which all who do the same work name alike; it ends with the process.

    Args:
        doing: what is waited for, as in "topics".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        # A file system without locks: the work may be done twice, and is written whole all the same.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print0(f"waiting for another run that makes the same {doing}")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
