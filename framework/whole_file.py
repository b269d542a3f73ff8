"""Files that are written whole or not at all, whoever reads them meanwhile and whatever ends the process."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
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
