"""Atomic writes, hashes and locks of files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from framework.runtime.console import print0
from framework.runtime.errors import UserError

LARGEST_JSON = 256_000_000  # bytes: above any manifest, tokenizer or scores, and within the memory of any machine


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes a temporary file beside `path`, then renames it, so that no reader sees a part of it. Text is UTF-8."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with named_in_errors(path):
            part.write_bytes(content.encode() if isinstance(content, str) else content)
            sync_file(part)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Adds the path to an OSError that names no file, as that of a failed write or flush."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def real_path(path: Path) -> Path:
    """The path without links. `Path.resolve` raises RuntimeError for a loop of links, which no user sees coming."""
    return Path(os.path.realpath(path))


def read_bounded(path: Path, limit: int = LARGEST_JSON) -> bytes:
    """The content of a regular file of at most `limit` bytes. A FIFO, device, socket or folder is refused at once.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: `unreadable-file`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # else a FIFO waits for its writer
        with open(descriptor, "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError("unreadable-file", "not a regular file", place=path)
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:  # a socket cannot be opened
        reason = "not a regular file" if path.exists() and not path.is_file() else f"cannot be read: {error.strerror}"
        raise UserError("unreadable-file", reason, place=path) from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError("unreadable-file", str(error), place=path) from None  # a NUL in the path
    if len(content) > limit:
        raise UserError("unreadable-file", f"larger than {limit:,} bytes", place=path)
    return content


def read_object(path: Path, hint: str, form: Any = None) -> Any:
    """The JSON object in a file that Sonoscribe wrote.

    Args:
        form: the type of the object, see `checked`; None for any.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: `damaged-file` or `unreadable-file`, with the path.
    """
    try:
        found = json.loads(read_bounded(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError("damaged-file", f"not JSON ({error})", place=path, hint=hint) from None
    if not isinstance(found, dict):
        raise UserError("damaged-file", f"found a {type(found).__name__}", place=path, expected="an object", hint=hint)
    return found if form is None else checked(found, form, path, hint)


def checked(found: Any, form: Any, path: Path, hint: str) -> Any:
    """What a JSON file contains as `form`, a type such as a TypedDict or a dataclass.

    Raises:
        UserError: `damaged-file`, with the first value of another type.
    """
    try:
        return TypeAdapter(form).validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise UserError("damaged-file", f"{at}: {first['msg']}", place=path, hint=hint) from None


@contextlib.contextmanager
def reading(path: Path, hint: str) -> Iterator[None]:
    """Inside, values are used that were read from `path`, a file that Sonoscribe wrote. An error that only other
    values can cause becomes `damaged-file`.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        found = f"not as Sonoscribe writes it ({error!r})"
        raise UserError("damaged-file", found, place=path, hint=hint) from error


def read_lines(path: Path, *, errors: str = "strict") -> list[str]:
    """The lines of a JSON-lines file, with their ends, so that a last line that was cut short shows.

    `str.splitlines` would also cut at U+2028, U+2029 and NEL, which JSON strings may hold unescaped.
    """
    with path.open(encoding="utf-8", errors=errors) as file:
        return list(file)


def sync_file(path: Path) -> None:
    """Flushes a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal. Does not load the file into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def file_lock(path: Path, result: str | None) -> Iterator[None]:
    """Holds an exclusive lock on the file `path`, which ends with the process at the latest.

    Args:
        result: what the holder makes, for the message of those who wait: "topics"; None: no message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        # On a file system without locks the work may be done twice, which is safe since it is written atomically.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if result is not None:
                    print0(f"waiting for another run that makes the same {result}")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a process may hold the lock on the file `path`; True where this cannot be found out."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
