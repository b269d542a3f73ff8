"""How a run is asked to stop or to save: signals, and files in its folder. It heeds them at the next step or batch."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from framework.runtime.console import is_main_process, print0
from framework.runtime.errors import Stopped
from framework.runtime.processes import process_start_time

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SAVE, STOP, FAILED = 1, 2, 3  # the larger is heeded
LOOKS_S = 1.0  # between two looks at the folder, which may lie far away
# In the environment, number and birth of a process without which the run shall not go on: who started it for a grid.
WATCHER = "SONOSCRIBE_WATCHER"
SAME_PRESS_S = 3.0  # a launcher passes on the SIGINT that the terminal has sent to all


class StopSignals:
    """Listens for requests. They are per process: what is done about them is agreed on by all, see engine.py."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.folder: Path | None = None
        self.training = False  # before, there is nothing to save, and a signal ends the run at once
        self._looked, self._owner = 0.0, os.getpid()

    def listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._heard)
        # A main thread that waits in a library hears nothing; the second Ctrl-C must be heard by another.
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        threading.Thread(target=_end_on_second_sigint, args=(heard,), name="signals", daemon=True).start()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a worker that loads exams; the process that it works for will stop it
        name = signal.Signals(number).name
        if self.reason is not None:
            return
        self.reason = name
        if not self.training:
            raise Stopped(f"stopped by {name} before the first step: nothing to save")
        if is_main_process():
            again = "; once more stops at once" if number == signal.SIGINT else ""
            os.write(2, f"\n{name}: saving at the end of this step{again}\n".encode())

    def watch(self, folder: Path) -> None:
        """From here on the run's folder is looked at: `touch RUN/SAVE`, `touch RUN/STOP`."""
        self.folder, self.training = folder, True

    def pending(self) -> int:
        """What this process has heard: 0, SAVE or STOP."""
        now = time.monotonic()
        if self.folder is not None and now - self._looked > LOOKS_S:
            self._looked = now
            if self.reason is None and (self.folder / "STOP").exists():
                self.reason = f"{self.folder / 'STOP'}"
            if self.reason is None and _watcher_is_gone():
                self.reason = "the end of the process that watched over it"
            if self.reason is None and (self.folder / "SAVE").exists():
                return SAVE
        return STOP if self.reason else 0

    def done(self, request: int) -> None:
        """Takes the files away that asked for what was done."""
        if self.folder is not None and request == SAVE:
            (self.folder / "SAVE").unlink(missing_ok=True)
            print0("saved, as asked for by the file SAVE")

    def why(self) -> str:
        """The reason to stop. Leaves a file STOP for a launcher that restarts processes, so that it does not resume."""
        if self.folder is not None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
            (self.folder / "STOP").touch()
        return self.reason or "a signal to another process"


def _watcher_is_gone() -> bool:
    pid, _, born = os.environ.get(WATCHER, "").partition(" ")
    return bool(pid) and str(process_start_time(int(pid))) != born


def _end_on_second_sigint(heard: int) -> None:
    first: float | None = None
    while number := os.read(heard, 1):
        if number[0] != signal.SIGINT:
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first > SAME_PRESS_S:
            os._exit(128 + signal.SIGINT)
