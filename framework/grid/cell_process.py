"""Trains one cell: `python -m framework.grid.cell_process FOLDER`, started by an executor on whatever machine.

It holds the cell's lease, runs `accelerate launch` on the cell's recipe, and writes down how that ended. Killed at any
moment it leaves a cell that another can go on with. SIGTERM, or the file CANCEL, lets the training save and end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import psutil

import framework
from framework.grid.cell_folder import PRUNED, SETTLED, CellFolder, CellState, Outcome, Status
from framework.grid.lease import BEAT_S, Lease, take_when_dead
from framework.runtime import errors
from framework.runtime.processes import process_start_time
from framework.runtime.signals import WATCHER

# Started by its path: `-m framework.cli` would look in the working folder first.
COMMAND_LINE = Path(framework.__file__).with_name("cli") / "__main__.py"
CELL = "SONOSCRIBE_CELL"  # in the environment of all that trains a cell
LOOKS_S = 0.5  # between two looks at the training
SAVES_S = 300.0  # that a training may take to save and end when it is asked to
# What a launcher or a queue has left in the environment is not for the launcher that is started here.
NOT_PASSED_ON = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class CellProcess:
    def __init__(self, folder: CellFolder, processes: int, attempts: int) -> None:
        self.folder, self.processes, self.attempts = folder, processes, attempts
        self.stop_as: str | None = None  # the status that the cell shall have, once it was asked to stop

    def run(self) -> None:
        """Trains the cell unless it is settled, or trained by another process."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._asked_to_stop)
        lease = take_when_dead(self.folder.path)
        if lease is None:
            print(f"{self.folder.path}: another process trains this cell", flush=True)
            return
        try:
            if self._end_remains(lease) and self.folder.status_at_rest() not in SETTLED:
                self._train(lease)
        finally:
            lease.release()

    def _train(self, lease: Lease) -> None:
        folder, before = self.folder, self.folder.state()
        if folder.is_finished:  # whoever trained it died before it could say so
            folder.write(replace(before, status="done", reason=None))
            return
        if before.deaths >= self.attempts:
            folder.write(replace(before, status="failed"))
            return
        self.stop_as = self.stop_as or folder.asked_to_stop()
        if self.stop_as is not None:
            folder.write(replace(before, status="stopped", reason="asked to stop before it began"))
            return
        saved = folder.saved_step()
        begun = replace(
            before,
            status="running",
            attempts=before.attempts + 1,
            deaths=before.deaths if saved == before.saved_step else 0,
            saved_step=saved,
            host=socket.gethostname(),
        )
        folder.begin()
        folder.outcome.unlink(missing_ok=True)
        training, started = self._start(), time.monotonic()

        def note() -> None:
            """Should this process die as well, what it was doing counts as a death, and the time is not lost."""
            spent = before.seconds + time.monotonic() - started
            folder.write(replace(begun, deaths=begun.deaths + 1, reason="it was killed", seconds=spent))

        try:
            note()
            code = self._watch(training, lease, note)
        except BaseException:
            self._kill()
            raise
        if code is not None:
            folder.write(self._ended(code, replace(begun, seconds=before.seconds + time.monotonic() - started)))

    def _start(self) -> subprocess.Popen[bytes]:
        several = ["--multi_gpu"] if self.processes > 1 else []
        command = [
            sys.executable, "-P", "-m", "accelerate.commands.launch", "--num_processes", str(self.processes), *several,
            "--num_machines", "1", "--main_process_port", "0", str(COMMAND_LINE), str(self.folder.recipe_file),
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
        environment |= {
            CELL: str(self.folder.path.resolve()),
            errors.OUTCOME: str(self.folder.outcome.resolve()),
            WATCHER: f"{os.getpid()} {process_start_time(os.getpid())}",
        }
        # The launcher of several processes would kill them half a minute after a signal.
        environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", f"{SAVES_S:.0f}")
        return subprocess.Popen(command, env=environment, start_new_session=True)

    def _watch(self, training: subprocess.Popen[bytes], lease: Lease, note: Callable[[], None]) -> int | None:
        """Waits until the training and all that it has started are gone. None: the cell is another process's now."""
        beat = time.monotonic()
        asked: float | None = None
        while training.poll() is None or self._training():
            time.sleep(LOOKS_S)
            now = time.monotonic()
            if now - beat > BEAT_S:
                beat = now
                if not lease.beat():
                    self._kill()
                    print(f"{self.folder.path}: taken over by another process", flush=True)
                    return None
                note()
            self.stop_as = self.stop_as or self.folder.asked_to_stop()
            if self.stop_as is not None and asked is None:
                asked = now
                for process in self._training():
                    _signal(process, signal.SIGTERM)
            if asked is not None and now - asked > SAVES_S:
                self._kill()
        return training.returncode if lease.beat() else None

    def _ended(self, code: int, state: CellState) -> CellState:
        """What the cell is now."""
        if self.folder.is_finished:
            return replace(state, status="done", deaths=0, reason=None)
        told = self.folder.told()
        if told is None and self.stop_as is not None:
            told = Outcome(errors.STOPPED, reason="asked to stop before its first step")
        elif told is None and code in (errors.BUG, *(-number for number in signal.Signals)):
            # Launchers make 1 of whatever signal.
            told = Outcome(errors.LOST, reason="it was killed (out of memory?)")
        elif told is None:
            told = Outcome(errors.USER_ERROR, reason=f"the launcher ended with exit code {code}; the log has its words")
        status: Status = "failed"
        deaths = 0
        if told.code == errors.STOPPED:
            status = PRUNED if self.stop_as == PRUNED else "stopped"
        elif told.code == errors.LOST:
            deaths = state.deaths + 1
            status = "failed" if deaths >= self.attempts else "queued"
        return replace(state, status=status, deaths=deaths, reason=told.reason)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_as = self.stop_as or "stopped"

    def _training(self) -> list[psutil.Process]:
        """All that trains the cell on this machine, in whatever session a launcher has put it."""
        mine, found = str(self.folder.path.resolve()), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(CELL) == mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _kill(self) -> None:
        left = self._training()
        for process in left:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(left, timeout=BEAT_S)

    def _end_remains(self, lease: Lease) -> bool:
        """Ends what is left of a training whose watcher died: two must not write to one run. False: lost the lease."""
        patience = time.monotonic() + SAVES_S
        left = self._training()
        for process in left:
            _signal(process, signal.SIGTERM)
        while left and time.monotonic() < patience:
            left = psutil.wait_procs(left, timeout=BEAT_S)[1]
            if not lease.beat():
                return False
        if left:
            self._kill()
        return True


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def main() -> None:
    parser = argparse.ArgumentParser(prog="cell_process", description="Trains one cell of a grid.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--attempts", type=int, default=1)
    asked = parser.parse_args()
    CellProcess(CellFolder(asked.folder), asked.processes, asked.attempts).run()


if __name__ == "__main__":
    main()
