"""Trains one cell: `python -m framework.grid.cell_process FOLDER`, started by an executor on any machine.

It holds the cell's lease, runs `accelerate launch` on the cell's recipe, and stores how that ended. If it is killed,
another process can resume the cell. On SIGTERM, or when the file CANCEL exists, the training saves and ends.
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

from framework.grid.cell_folder import PRUNED, SETTLED, CellFolder, CellState, Outcome, Status
from framework.grid.lease import BEAT_S, Lease, take_when_dead
from framework.runtime import errors
from framework.runtime.processes import COMMAND_LINE, TASK_COUNTS, process_start_time
from framework.runtime.signals import SIGNALS, WATCHER, handle_signals, is_nohup

CELL = "SONOSCRIBE_CELL"  # environment variable of every process that trains a cell
POLL_S = 0.5
SAVE_S = 300.0  # that a training may take to save and end
# Variables of an outer launcher or queue, which must not reach the launcher that is started here.
REMOVED_VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *TASK_COUNTS,
)


# A configuration file of accelerate that sets nothing.
NEUTRAL_CONFIG = """\
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
mixed_precision: 'no'
use_cpu: false
debug: false
num_processes: 1
"""


class CellProcess:
    def __init__(self, folder: CellFolder, processes: int, attempts: int) -> None:
        self.folder, self.processes, self.attempts = folder, processes, attempts
        self.stop_as: str | None = None  # status after a requested stop

    def run(self) -> None:
        """Trains the cell unless it is settled or another process trains it."""
        handle_signals(SIGNALS, self._handle_stop)
        lease = take_when_dead(self.folder.path)
        if lease is None:
            print(f"{self.folder.path}: another process trains this cell", flush=True)
            return
        try:
            if self._end_orphans(lease) and self.folder.status_at_rest() not in SETTLED:
                self._train(lease)
        finally:
            lease.release()

    def _train(self, lease: Lease) -> None:
        folder, before = self.folder, self.folder.state()
        if folder.is_finished:  # the process that trained it died before it stored the status
            folder.write(replace(before, status="done", reason=None))
            return
        if before.crashes >= self.attempts:
            folder.write(replace(before, status="failed"))
            return
        self.stop_as = self.stop_as or folder.stop_request()
        if self.stop_as is not None:
            folder.write(replace(before, status="stopped", reason="stopped before its start"))
            return
        saved = folder.saved_step()
        started_state = replace(
            before,
            status="running",
            attempts=before.attempts + 1,
            crashes=before.crashes if saved == before.saved_step else 0,
            saved_step=saved,
            host=socket.gethostname(),
        )
        folder.mark_attempt()
        folder.outcome.unlink(missing_ok=True)
        training, started = self._start(), time.monotonic()

        def write_state() -> None:
            """Stores the time so far. If this process is killed, the state is that of a crash."""
            seconds = before.seconds + time.monotonic() - started
            folder.write(
                replace(started_state, crashes=started_state.crashes + 1, reason="it was killed", seconds=seconds)
            )

        try:
            write_state()
            code = self._watch(training, lease, write_state)
        except BaseException:
            self._kill()
            raise
        if code is not None:
            seconds = before.seconds + time.monotonic() - started
            folder.write(self._final_state(code, replace(started_state, seconds=seconds)))

    def _start(self) -> subprocess.Popen[bytes]:
        several = ["--multi_gpu"] if self.processes > 1 else []
        config = self.folder.path / "accelerate.yaml"  # or the launcher would read the user's default_config.yaml
        config.write_text(NEUTRAL_CONFIG, encoding="utf-8")
        command = [
            sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file", str(config),
            "--num_processes", str(self.processes), *several,
            "--num_machines", "1", "--main_process_port", "0", str(COMMAND_LINE), str(self.folder.recipe_file),
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name not in REMOVED_VARIABLES}
        environment |= {
            CELL: str(self.folder.path.resolve()),
            errors.OUTCOME: str(self.folder.outcome.resolve()),
            WATCHER: f"{os.getpid()} {process_start_time(os.getpid())}",
        }
        # By default the launcher kills several processes 30 s after a signal.
        environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", f"{SAVE_S:.0f}")
        if is_nohup():  # the launcher would handle it nevertheless
            environment.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
        return subprocess.Popen(command, env=environment, start_new_session=True)

    def _watch(self, training: subprocess.Popen[bytes], lease: Lease, write_state: Callable[[], None]) -> int | None:
        """Waits until the training and all processes that it started have ended.

        Returns:
            The exit code; None if another process has taken the cell over.
        """
        last_beat = time.monotonic()
        stop_time: float | None = None
        while training.poll() is None or self._processes():
            time.sleep(POLL_S)
            now = time.monotonic()
            if now - last_beat > BEAT_S:
                last_beat = now
                if not lease.beat():
                    self._kill()
                    print(f"{self.folder.path}: taken over by another process", flush=True)
                    return None
                write_state()
            self.stop_as = self.stop_as or self.folder.stop_request()
            if self.stop_as is not None and stop_time is None:
                stop_time = now
                for process in self._processes():
                    _signal(process, signal.SIGTERM)
            if stop_time is not None and now - stop_time > SAVE_S:
                self._kill()
        return training.returncode if lease.beat() else None

    def _final_state(self, code: int, state: CellState) -> CellState:
        if self.folder.is_finished:
            return replace(state, status="done", crashes=0, reason=None)
        outcome = self.folder.read_outcome()
        if outcome is None and self.stop_as is not None:
            outcome = Outcome(errors.STOPPED, reason="stopped before its first step")
        elif outcome is None and code in (errors.BUG, *(-number for number in signal.Signals)):
            # Launchers turn any signal into exit code 1.
            outcome = Outcome(errors.LOST, reason="it was killed (out of memory?)")
        elif outcome is None:
            outcome = Outcome(errors.USER_ERROR, reason=f"the launcher ended with exit code {code}; see the log")
        status: Status = "failed"
        crashes = 0
        if outcome.code == errors.STOPPED:
            status = PRUNED if self.stop_as == PRUNED else "stopped"
        elif outcome.code == errors.LOST:
            crashes = state.crashes + 1
            status = "failed" if crashes >= self.attempts else "queued"
        return replace(state, status=status, crashes=crashes, reason=outcome.reason)

    def _handle_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_as = self.stop_as or "stopped"

    def _processes(self) -> list[psutil.Process]:
        """All processes on this machine that train the cell, in any session."""
        mine, found = str(self.folder.path.resolve()), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(CELL) == mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _kill(self) -> None:
        processes = self._processes()
        for process in processes:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(processes, timeout=BEAT_S)

    def _end_orphans(self, lease: Lease) -> bool:
        """Ends a training whose cell process died, since two must not write to one run. False if the lease is lost."""
        deadline = time.monotonic() + SAVE_S
        left = self._processes()
        for process in left:
            _signal(process, signal.SIGTERM)
        while left and time.monotonic() < deadline:
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
    args = parser.parse_args()
    try:
        CellProcess(CellFolder(args.folder), args.processes, args.attempts).run()
    except (errors.UserError, OSError) as error:  # a damaged state file, or a full disk
        print(f"{args.folder}: {error}", file=sys.stderr)
        sys.exit(errors.USER_ERROR)


if __name__ == "__main__":
    main()
