"""A terminal without an end: what a text with cursor movements looks like, and a command that runs on one."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from harness import LONGEST_S, ROOT, kill_all_of

from framework.runtime import live

PARTS = re.compile(r"\x1b\[([\d;?]*)([A-Za-z])|([\r\n\b])|(\x1b.)|([^\x1b\r\n\b]+)")


class Screen(io.StringIO):
    """A stream to write to, and the rows that it shows."""

    encoding = "utf-8"

    def __init__(self, columns: int = 80) -> None:
        super().__init__()
        self.columns, self.cells, self.row, self.column = columns, [[]], 0, 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for count, code, control, other, letters in PARTS.findall(text):
            assert not other, f"{other!r} is not expected"
            if code == "A":
                self.row = max(0, self.row - int(count or 1))
            elif code == "J":
                self.cells[self.row + 1 :] = []
                self.cells[self.row][self.column :] = []
            elif code == "K":
                self.cells[self.row][self.column :] = []
            elif code not in ("", "m"):
                raise AssertionError(f"{code!r} is not expected")
            if control == "\r":
                self.column = 0
            elif control == "\n":
                self._down()
            for letter in letters:
                if self.column == self.columns:
                    self._down()
                cells = self.cells[self.row]
                cells += " " * (self.column - len(cells))
                cells[self.column : self.column + 1] = [letter]
                self.column += 1
        return super().write(text)

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.cells):
            self.cells.append([])

    @property
    def rows(self) -> list[str]:
        return ["".join(cells).rstrip() for cells in self.cells]


def on_screen(monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> Screen:
    """A screen as standard output and error of a test, on which every refresh of a display draws.

    It is called in the test, not in a fixture, since pytest sets both streams again before the test.
    """
    screen = Screen(columns)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, screen)
    for name in live.PLAIN:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(live, "REFRESH_S", 0.0)
    return screen


class OnTerminal:
    """A command of launch.py on a terminal of its own. Leaving the `with` block kills it."""

    def __init__(self, *words: str, cwd: Path, columns: int = 80, command: tuple[str, ...] = (), **env: str) -> None:
        self.screen, self.text, self._bytes = Screen(columns), "", b""
        self.end, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        plain = {
            name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "COLUMNS", "LINES")
        }
        variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", **env}
        self.process = subprocess.Popen(
            [*(command or (sys.executable, str(ROOT / "launch.py"))), *words],
            cwd=cwd, env={**plain, **variables}, stdin=terminal, stdout=terminal, stderr=terminal,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(terminal)

    def until(self, what: str, seconds: float = LONGEST_S) -> None:
        """Reads until a row of the screen contains `what`."""
        ends = time.monotonic() + seconds
        while not any(what in row for row in self.screen.rows):
            assert self._read() and time.monotonic() < ends, f"not shown: {what}\n" + "\n".join(self.screen.rows)

    def press(self, key: str) -> None:
        os.write(self.end, key.encode())

    def wait(self) -> int:
        """Reads to the end, and returns the exit code."""
        while self._read():
            pass
        return self.process.wait(LONGEST_S)

    def _read(self) -> bool:
        if not select.select([self.end], [], [], LONGEST_S)[0]:
            return False
        try:
            self._bytes += os.read(self.end, 65536)
        except OSError:  # the other end is closed
            return False
        text = self._bytes.decode("utf-8", "ignore")
        if text.encode() == self._bytes and not re.search(r"\x1b[\[\d;?]*$", text):  # else a part is still to come
            self.screen.write(text)
            self.text, self._bytes = self.text + text, b""
        return True

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            kill_all_of(self.process.pid)
        self.process.wait()
        os.close(self.end)
