"""Work that several runs need is done by one of them, while the others wait and then read what it kept."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from framework.progress import say


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
                say(f"waiting for another run that makes the same {doing}")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
