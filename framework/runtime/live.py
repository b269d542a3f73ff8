"""What moves on a terminal: one display below the lines of a command, drawn again at most twice a second.

The cursor stays above the display, and a draw erases only what is below the cursor. So no line is lost, neither of
another process nor of C code, and a process that is killed leaves a terminal that works. `rich.live` instead moves the
cursor up over the lines that it expects there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from rich.table import Table

REFRESH_S = 0.5
LINE_S = 60.0  # between the lines that replace the display where nothing can move
ERASE = "\x1b[J"  # everything below the cursor
PLAIN = ("CI", "NO_COLOR")  # environment variables that ask for plain lines

T = TypeVar("T")


def is_main_process() -> bool:
    """By the launcher's variables, so that it can be asked before (and without) torch."""
    return (os.environ.get("RANK") or "0") == "0"


def can_move() -> bool:
    """Whether standard error is a terminal on which the cursor moves, and the environment does not ask for lines."""
    plain = any(os.environ.get(name) for name in PLAIN) or os.environ.get("TERM", "dumb") == "dumb"
    return sys.stderr.isatty() and not plain


def time_text(seconds: float | None) -> str:
    """`45 s`, `12.5 min` or `3 h 05 min`."""
    if seconds is None:
        return "-"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 59.95 * 60:
        return f"{seconds / 60:.1f} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Display:
    """Shows rows on standard error until it is closed; where nothing can move, a line a minute.

    While one display is open, another one shows nothing. On other processes than the main one it only erases what the
    main process has drawn before they print, since all share the terminal.

    Args:
        rows: a renderable of rich, called for each draw.
        line: the same in one line of plain text.
    """

    def __init__(self, rows: Callable[[], Any], line: Callable[[], str]) -> None:
        global _open
        self.rows, self.line = rows, line
        self.is_open, self.is_main = _open is None, is_main_process()
        self.is_drawn = not self.is_main
        self.moves = self.is_open and can_move()
        self.due = time.monotonic() + (0 if self.moves else LINE_S)
        if self.is_open:
            _open = self
        if self.moves:
            from rich.console import Console

            self.streams = sys.stdout, sys.stderr
            self.console = Console(file=sys.stderr)
            sys.stdout, sys.stderr = _Above(sys.stdout, self), _Above(sys.stderr, self)  # type: ignore[assignment]

    def refresh(self, *, now: bool = False) -> None:
        """Draws the rows again, if it is time to; called as often as they change."""
        time_s = time.monotonic()
        if not (self.is_open and self.is_main) or (time_s < self.due and not now):
            return
        self.due = time_s + (REFRESH_S if self.moves else LINE_S)
        if self.moves:
            self._draw()
        else:
            print(self.line(), file=sys.stderr, flush=True)

    def _draw(self) -> None:
        width, height = self.console.size
        with self.console.capture() as captured:
            self.console.print(self.rows(), width=width - 1)  # a full row would make the next one empty
        rows = captured.get().splitlines()[: max(1, height - 2)]
        text = "".join(f"\n{row}\x1b[K" for row in rows)
        self._write(f"{text}{ERASE}\x1b[{len(rows)}A\r")
        self.is_drawn = True

    def erase(self) -> None:
        """Erases the rows, until they are drawn again, so that something else can be printed."""
        if self.moves and self.is_drawn:
            self._write(ERASE)
            self.is_drawn = not self.is_main

    def _write(self, text: str) -> None:
        self.streams[1].write(text)
        self.streams[1].flush()

    def close(self) -> None:
        global _open
        if not self.is_open:
            return
        self.erase()
        if self.moves:
            sys.stdout, sys.stderr = self.streams
        self.is_open = self.moves = False
        _open = None


_open: Display | None = None


class _Above:
    """A text stream that erases the display before it writes. The next refresh draws it below."""

    def __init__(self, stream: Any, display: Display) -> None:
        self._stream, self._display = stream, display

    def write(self, text: str) -> int:
        self._display.erase()
        written: int = self._stream.write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def above_display() -> Iterator[None]:
    """What is printed inside stands above the display, which is drawn again at once."""
    if _open is None:
        yield
        return
    _open.erase()
    yield
    if _open is not None and _open.moves:
        _open.refresh(now=True)


def write_unbuffered(text: str) -> None:
    """Writes to standard error above the display where Python's streams may be in use: in a handler of a signal."""
    erase = ""
    if _open is not None and _open.moves and _open.is_drawn:
        erase, _open.is_drawn = ERASE, not _open.is_main
    os.write(2, f"{erase}{text}".encode())


class ProgressBar(Generic[T]):
    """A display of how many items are done. Iterating over it yields the items; or call `update`.

    Args:
        total: number of items, with those done before.
        text: what they are.
        done: number of items done before.
    """

    def __init__(self, items: Iterable[T], *, total: int, text: str, done: int = 0) -> None:
        self.items, self.total, self.text, self.done, self.note = items, total, text, done, ""
        self.clock = Clock(done)
        self.display = Display(self._rows, self._line)
        self.display.refresh()

    def update(self, count: int = 1) -> None:
        self.done += count
        self.display.refresh()

    def close(self) -> None:
        self.display.close()

    def __enter__(self) -> ProgressBar[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self.items:
                yield item
                self.update()

    def _rows(self) -> Table:
        return bar_row(self.text, self.done, self.total, self.clock.left(self.done, self.total), self.note)

    def _line(self) -> str:
        return "  ".join(filter(None, (self.text, *_counts(self.done, self.total), self._left(), self.note)))

    def _left(self) -> str:
        left = self.clock.left(self.done, self.total)
        return "" if left is None else f"{time_text(left)} left"


class Clock:
    """The time that is left, by the time since it was made.

    Args:
        done: what was done before.
    """

    def __init__(self, done: int = 0) -> None:
        self.started, self.before = time.monotonic(), done

    def left(self, done: int, total: int) -> float | None:
        """Seconds; None before anything is done."""
        if done <= self.before:
            return None
        return (time.monotonic() - self.started) * (total - done) / (done - self.before)


def bar_row(text: str, done: int, total: int, seconds_left: float | None, note: str = "") -> Table:
    """A bar as wide as the terminal leaves room for, between its name and its numbers."""
    from rich.progress_bar import ProgressBar as Bar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_column(ratio=1, min_width=8)
    left = "" if seconds_left is None else f"{time_text(seconds_left)} left"
    cells = [text for text in (*_counts(done, total), left, note) if text]
    for _ in cells:
        row.add_column(no_wrap=True, overflow="ellipsis", justify="right")
    row.add_row(Text(text), Bar(total=max(total, 1), completed=done), *map(Text, cells))
    return row


def _counts(done: int, total: int) -> tuple[str, str]:
    return f"{done}/{total}", f"{100 * done // max(total, 1)} %"
