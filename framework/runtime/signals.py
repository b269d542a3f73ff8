"""Requests to stop or save a run: signals, and the files SAVE and STOP in its folder, handled at the next step."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from framework.runtime.console import print0
from framework.runtime.errors import Stopped
from framework.runtime.live import is_main_process, write_unbuffered
from framework.runtime.processes import process_start_time

# Queues send SIGTERM, SIGUSR1 or SIGUSR2 before the time is over; a terminal that closes sends SIGHUP.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)
Handler = Callable[[int, FrameType | None], None]
SAVE, STOP, FAILED = 1, 2, 3  # the largest over all processes is handled
POLL_S = 1.0  # between two checks of the folder, which may be on a slow file system
# Environment variable: id and start time of the process that started the run for a grid; the run stops when it ends.
WATCHER = "SONOSCRIBE_WATCHER"
SAME_PRESS_S = 3.0  # a launcher forwards the SIGINT that the terminal has sent to all processes


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Restores the handlers of the process that a run in the block replaces, such as those of a notebook."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    wakeup_fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def handle_signals(numbers: Iterable[signal.Signals], handler: Handler) -> dict[signal.Signals, Any]:
    """Sets a handler, except of a SIGHUP that is ignored, as `nohup` starts programs. Returns the handlers before."""
    return {number: signal.signal(number, handler) for number in numbers if not is_nohup(number)}


def is_nohup(number: signal.Signals = signal.SIGHUP) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


class StopSignals:
    """The requests that one process has received. The trainer takes the maximum over all processes."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.folder: Path | None = None
        self.training = False  # until then there is nothing to save, and a signal ends the run at once
        self._checked, self._owner = 0.0, os.getpid()

    def listen(self) -> None:
        handle_signals(SIGNALS, self._receive)
        # Handlers run in the main thread, which may wait in a library; a second Ctrl-C needs another thread.
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        threading.Thread(target=_exit_on_second_sigint, args=(receiver,), name="signals", daemon=True).start()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a data-loading worker, which its training process stops
        name = signal.Signals(number).name
        if self.reason is not None:
            return
        self.reason = name
        if not self.training:
            raise Stopped(f"stopped by {name} before the first step: nothing to save")
        if is_main_process():
            hint = "; press again to stop at once" if number == signal.SIGINT else ""
            write_unbuffered(f"\n{name}: saving at the end of this step{hint}\n")

    def watch(self, folder: Path) -> None:
        """Starts to check the run's folder for the files SAVE and STOP (`touch RUN/SAVE`)."""
        self.folder, self.training = folder, True

    def pending(self) -> int:
        """The request of this process: 0, SAVE or STOP."""
        now = time.monotonic()
        if self.folder is not None and now - self._checked > POLL_S:
            self._checked = now
            if self.reason is None and (self.folder / "STOP").exists():
                self.reason = f"{self.folder / 'STOP'}"
            if self.reason is None and _watcher_has_ended():
                self.reason = "the end of the process that started it"
            if self.reason is None and (self.folder / "SAVE").exists():
                return SAVE
        return STOP if self.reason else 0

    def done(self, request: int) -> None:
        """Removes the file of a request that was handled."""
        if self.folder is not None and request == SAVE:
            (self.folder / "SAVE").unlink(missing_ok=True)
            print0("saved, as requested by the file SAVE")

    def why(self) -> str:
        """The reason to stop. Leaves a file STOP for a launcher that restarts processes, so that it does not resume."""
        if self.folder is not None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
            (self.folder / "STOP").touch()
        return self.reason or "a signal to another process"


def _watcher_has_ended() -> bool:
    pid, _, started = os.environ.get(WATCHER, "").partition(" ")
    return bool(pid) and str(process_start_time(int(pid))) != started


def _exit_on_second_sigint(receiver: int) -> None:
    first: float | None = None
    while number := os.read(receiver, 1):
        if number[0] != signal.SIGINT:
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first > SAME_PRESS_S:
            write_unbuffered("\n")
            os._exit(128 + signal.SIGINT)
