"""Trains one cell: `python -m framework.grid.cell_process FOLDER`, started by an executor on whatever machine.

It holds the cell's lease, runs `accelerate launch` on the cell's recipe, and writes down how that ended. Killed at any
moment it leaves a cell that another can go on with. SIGTERM, or the file CANCEL, lets the training save and end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

import psutil

from framework import exits
from framework.grid.cell_folder import SETTLED, CellFolder, CellState
from framework.grid.lease import BEAT_S, Lease, take_when_dead
from framework.tracking import write_json

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
            _end_remains(self.folder)
            if self.folder.status_at_rest() not in SETTLED:
                self._train(lease)
        finally:
            lease.release()

    def _train(self, lease: Lease) -> None:
        folder, before = self.folder, self.folder.state()
        if folder.has_scores:  # whoever trained it died before it could say so
            folder.write(replace(before, status="done", reason=None))
            return
        if before.deaths >= self.attempts:
            folder.write(replace(before, status="failed"))
            return
        if folder.cancel.exists():
            folder.write(replace(before, status="stopped", reason="cancelled before it began"))
            return
        begun = replace(before, status="running", attempts=before.attempts + 1, host=socket.gethostname())
        # Should this process die as well, what it was doing counts as a death.
        folder.write(replace(begun, deaths=before.deaths + 1, reason="it was killed"))
        step = progress.step if (progress := folder.progress()) else 0
        write_json(folder.path / "begin.json", {"time": time.time(), "step": step})
        folder.outcome.unlink(missing_ok=True)
        started = time.monotonic()
        code = self._watch(self._start(), lease)
        if code is not None:
            folder.write(self._ended(code, replace(begun, seconds=before.seconds + time.monotonic() - started)))

    def _start(self) -> subprocess.Popen[bytes]:
        several = ["--multi_gpu"] if self.processes > 1 else []
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(self.processes), *several,
            "--num_machines", "1", "--main_process_port", "0", "--module", "framework.cli",
            str(self.folder.recipe_file),
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
        environment |= {CELL: str(self.folder.path.resolve()), exits.OUTCOME: str(self.folder.outcome.resolve())}
        return subprocess.Popen(command, env=environment, start_new_session=True)

    def _watch(self, training: subprocess.Popen[bytes], lease: Lease) -> int | None:
        """Waits until the training and all that it has started are gone. None: the cell is another process's now."""
        beat = time.monotonic()
        asked: float | None = None
        while training.poll() is None or _group_lives(training.pid):
            time.sleep(LOOKS_S)
            now = time.monotonic()
            if now - beat > BEAT_S:
                beat = now
                if not lease.beat():
                    _signal_group(training.pid, signal.SIGKILL)
                    print(f"{self.folder.path}: taken over by another process", flush=True)
                    return None
            if self.stop_as is None and self.folder.cancel.exists():
                self.stop_as = self.folder.cancel.read_text(encoding="utf-8").strip() or "stopped"
            if self.stop_as is not None and asked is None:
                asked = now
                _signal_group(training.pid, signal.SIGTERM)
            if asked is not None and now - asked > SAVES_S:
                _signal_group(training.pid, signal.SIGKILL)
        return training.returncode

    def _ended(self, code: int, state: CellState) -> CellState:
        """What the cell is now."""
        if self.folder.has_scores:
            return replace(state, status="done", deaths=0, reason=None)
        try:
            told = json.loads(self.folder.outcome.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = {"code": None, "reason": "it was killed (out of memory?)"}
        reason = next((line for line in told["reason"].splitlines() if line.strip()), "it did not say why")
        if self.stop_as is not None or told["code"] == exits.STOPPED:
            status = "pruned" if self.stop_as == "pruned" else "stopped"
            return replace(state, status=status, deaths=0, reason=reason)  # type: ignore[arg-type]
        if told["code"] in (None, exits.LOST):
            deaths = state.deaths + 1
            status = "failed" if deaths >= self.attempts else "queued"
            return replace(state, status=status, deaths=deaths, reason=reason)  # type: ignore[arg-type]
        return replace(state, status="failed", reason=reason)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_as = self.stop_as or "stopped"


def _group_lives(leader: int) -> bool:
    """Whether a process of the group is left; one that is dead, and whose parent does not ask, does not count."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


def _end_remains(folder: CellFolder) -> None:
    """Ends what is left of a training whose watcher died: two must not write to one run."""
    mine = str(folder.path.resolve())
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(CELL) == mine:
                left.append(process)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=60)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(prog="cell_process", description="Trains one cell of a grid.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--attempts", type=int, default=1)
    asked = parser.parse_args()
    CellProcess(CellFolder(asked.folder), asked.processes, asked.attempts).run()


if __name__ == "__main__":
    main()
