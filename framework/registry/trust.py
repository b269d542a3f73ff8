"""Decides whether code that comes with a saved model or run may run.

A saved recipe may name plugin files, and commands that read a data set. They run only if the user trusts their SHA-256:
those of runs that this user trained are trusted when training starts, others by `--trust`.
XDG_CONFIG_HOME/sonoscribe/trusted.json has the hashes; the environment variable SONOSCRIBE_TRUST adds more, for a
cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from framework.registry.source import PluginError
from framework.runtime.errors import Problem
from framework.runtime.files import file_lock

PIPE = "pipe:"  # how a recipe's value begins that is a command
VARIABLE = "SONOSCRIBE_TRUST"  # SHA-256 of trusted files, separated by commas

_untrusted: dict[Path, tuple[Path, ...]] = {}  # plugin file of a saved recipe -> all plugin files of that recipe
_untrusted_commands: set[str] = set()  # of a saved recipe
_trusted_here: set[str] = set()  # hashes that this process trusts although they cannot be stored


def trusted_file() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "sonoscribe" / "trusted.json"


def _stored() -> dict[str, str]:
    """SHA-256 -> path of the file when it was trusted.

    Raises:
        PluginError: `damaged-file`.
    """
    path = trusted_file()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {str(sha256): str(name) for sha256, name in stored.items()}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except (OSError, ValueError, AttributeError) as error:
        hint = "Delete it, and trust the files again."
        raise PluginError("damaged-file", f"cannot be read ({error})", place=path, hint=hint) from None


def _is_trusted(sha256: str) -> bool:
    named = {word.strip().lower() for word in os.environ.get(VARIABLE, "").split(",")}
    return sha256 in named or sha256 in _trusted_here or sha256 in _stored()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def trust(files: Iterable[Path]) -> None:
    """Remembers the hashes of plugin files, for this process and, if the user's file can be written, for later ones."""
    _remember({sha256_of(path.read_bytes()): str(path) for path in files if path.is_file()})


def trust_commands(commands: Iterable[str]) -> None:
    """Remembers the hashes of commands, as `trust` those of files."""
    _remember({sha256_of(command.encode()): command for command in commands})


def _remember(hashes: dict[str, str]) -> None:
    _trusted_here.update(hashes)
    path = trusted_file()
    with contextlib.suppress(OSError, PluginError):  # a home that cannot be written, or a damaged file
        if hashes.keys() <= _stored().keys():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path.with_name(".trusted.lock"), "list of trusted files"):
            descriptor, part = tempfile.mkstemp(dir=path.parent)  # mode 0600
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({**_stored(), **hashes}, file, indent=1, ensure_ascii=False)
            Path(part).replace(path)


def mark_as_saved(files: Iterable[Path]) -> None:
    """Records that plugin files come with a saved recipe, so that they are imported only if the user trusts them."""
    together = tuple(files)
    _untrusted.update(dict.fromkeys(together, together))


def mark_neighbour(path: Path) -> None:
    """Records where a module beside a plugin file comes from: a saved recipe, as the plugin files in its folder, or
    the user, whose later commands may then import it.
    """
    if any(file.parent == path.parent for file in _untrusted):
        _untrusted.setdefault(path, (path,))
    else:
        trust([path])


def mark_as_named(files: Iterable[Path]) -> None:
    """Records that the user has named plugin files, in a recipe or on the command line."""
    for path in files:
        _untrusted.pop(path, None)


def mark_command(command: str, *, saved: bool) -> None:
    """Records whether a command comes with a saved recipe, or the user has named it."""
    (_untrusted_commands.add if saved else _untrusted_commands.discard)(command)


def unmarked_commands(commands: Iterable[str]) -> list[str]:
    """The commands that the user has named."""
    return [command for command in commands if command not in _untrusted_commands]


def require_trusted_command(command: str, place: str) -> None:
    """Raises `untrusted-code` if a command comes with a saved recipe and the user does not trust it."""
    sha256 = sha256_of(command.encode())
    if command not in _untrusted_commands or _is_trusted(sha256):
        return
    hint = (
        "Read it. If you trust it, repeat the command with --trust, which remembers the hash "
        f"(sonoscribe.load(..., trust=True) in Python, or {VARIABLE}={sha256} on a cluster)."
    )
    found = f"the recipe of a saved model or run would run `{command}`, SHA-256 {sha256}"
    raise PluginError("untrusted-code", found, place=place, hint=hint)


def unmarked(files: Iterable[Path]) -> list[Path]:
    """The files that do not come with a saved recipe: the user has named them."""
    return [path for path in files if path not in _untrusted]


def require_trusted(path: Path, content: bytes | None = None) -> None:
    """Raises `untrusted-code` if a plugin file comes with a saved recipe and the user does not trust it.

    Args:
        content: the bytes that will be run; None reads the file.
    """
    if path not in _untrusted:
        return
    if _is_trusted(sha256_of(path.read_bytes() if content is None else content)):
        return
    hashes = {file: sha256_of(file.read_bytes()) for file in dict.fromkeys((path, *_untrusted[path])) if file.is_file()}
    unknown = {file: sha256 for file, sha256 in hashes.items() if not _is_trusted(sha256)}
    hint = (
        "Read the file. If you trust it, repeat the command with --trust, which remembers the hash "
        f"(sonoscribe.load(..., trust=True) in Python, or {VARIABLE}={','.join(unknown.values())} on a cluster)."
    )
    raise PluginError.of(
        Problem("untrusted-code", f"code that comes with a saved model or run, SHA-256 {sha256}", str(file), hint=hint)
        for file, sha256 in unknown.items()
    )
