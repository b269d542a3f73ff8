"""Finds the process that the others wait for, before the collective time-out ends the run."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator

from framework.distributed.launch import restarts
from framework.runtime.errors import ProcessLost, first_line

BEAT_S = 2.0  # seconds between two heartbeats
WARN_FRACTION, WARN_S = 0.5, 300.0  # a hang is reported after half the time-out, at most after five minutes
# Parts of the messages of libraries about a broken connection or a collective that timed out.
CONNECTION_ERRORS = (
    "connection closed",
    "connection reset",
    "connection refused",
    "timed out",
    "broken pipe",
    "by peer",
)


@dataclass
class Heartbeat:
    """The last heartbeat of a process.

    Attributes:
        moves: number of calls of `HangMonitor.at`.
        where: argument of the last call.
        beats: number of heartbeats.
        working_alone: `others_wait` of the last call.
        moved_at: local time at which `moves` was last seen to change, in seconds.
        alive_at: local time at which `beats` was last seen to change, in seconds.
    """

    rank: int
    moves: int
    where: str
    host: str
    pid: int
    beats: int
    working_alone: bool
    moved_at: float = 0.0
    alive_at: float = 0.0


class HangMonitor:
    """Context manager in which each process publishes its heartbeat through the launcher's store and reads the others'.

    Args:
        timeout: minutes that a process waits for the others.
    """

    def __init__(self, accelerator: Accelerator, timeout: float) -> None:
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        self.timeout_s = timeout * 60
        self.warn_s = min(WARN_FRACTION * self.timeout_s, WARN_S)
        self._moves, self._where, self._working_alone = 0, "starting", False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, where: str, *, others_wait: bool = False) -> None:
        """Records where this process is; the thread publishes it.

        Args:
            others_wait: one process works here while the others wait; only a process that does not answer is reported.
        """
        self._where, self._moves, self._working_alone = where, self._moves + 1, others_wait

    def __enter__(self) -> HangMonitor:
        if self.processes > 1:
            self._thread = threading.Thread(target=self._run, name="hang_monitor", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(BEAT_S)  # the store ends with the process
        if self.processes > 1 and isinstance(error, RuntimeError) and _is_connection_error(error):
            raise ProcessLost(
                f"waited for the other processes at {self._where}; one of them died, hangs or cannot be reached "
                f"({first_line(error)[:200]}). Resume from the last checkpoint with resume=auto"
            ) from error

    def _run(self) -> None:
        try:
            store = self._store()
        except (RuntimeError, ValueError, KeyError) as error:
            print(f"rank {self.rank}: hangs of other processes are not reported ({error})", file=sys.stderr)
            return
        latest: dict[int, Heartbeat] = {}
        reported: set[tuple[int, int]] = set()
        beats = 0
        while not self._closed.wait(BEAT_S):
            beats += 1
            try:
                mine = [self._moves, self._where, socket.gethostname(), os.getpid(), beats, self._working_alone]
                store.set(f"{self.rank}", json.dumps(mine))
                for rank in range(self.processes):
                    if store.check([f"{rank}"]):
                        _update(latest, Heartbeat(rank, *json.loads(store.get(f"{rank}"))))
            except (RuntimeError, ValueError):
                return  # the process that keeps the store has ended, which every process will notice
            self._report_hang(latest, reported)

    def _store(self) -> Any:
        """Opens a connection of its own to the launcher's store: the backend may be using the existing one."""
        client = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=min(30.0, self.timeout_s)),
            wait_for_workers=False,
        )
        return dist.PrefixStore(f"heartbeat/{restarts()}", client)

    def _report_hang(self, latest: dict[int, Heartbeat], reported: set[tuple[int, int]]) -> None:
        """Prints, once per hang, which processes the others wait for, and the stack of those processes."""
        now = time.monotonic()
        if len(latest) < self.processes or any(now - beat.moved_at < self.warn_s for beat in latest.values()):
            return
        fewest_moves = min(beat.moves for beat in latest.values())
        silent = [beat for beat in latest.values() if now - beat.alive_at > 5 * BEAT_S]
        if not silent and any(beat.working_alone for beat in latest.values()):
            return
        behind = silent or [beat for beat in latest.values() if beat.moves == fewest_moves]
        if len(behind) == self.processes:
            behind = []  # all wait at the same point: each prints its own stack
        key = (fewest_moves, len(behind))
        if key in reported:
            return
        reported.add(key)
        waiting = [beat.rank for beat in latest.values() if beat not in behind] if behind else []
        if waiting and self.rank == waiting[0]:
            for beat in behind:
                state = "does not answer" if beat in silent else "has not moved"
                print(
                    f"rank {beat.rank} (host {beat.host}, pid {beat.pid}) {state} for {now - beat.moved_at:.0f} s, "
                    f"last at {beat.where}; the others wait. The run ends after {self.timeout_s / 60:g} minutes of "
                    "waiting (distributed.timeout)",
                    file=sys.stderr,
                    flush=True,
                )
        if self.rank not in waiting:
            print(f"rank {self.rank} is at {self._where}, stack:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)


def _update(latest: dict[int, Heartbeat], beat: Heartbeat) -> None:
    now, before = time.monotonic(), latest.get(beat.rank)
    beat.moved_at = before.moved_at if before and before.moves == beat.moves else now
    beat.alive_at = before.alive_at if before and before.beats == beat.beats else now
    latest[beat.rank] = beat


def _is_connection_error(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(part in text for part in CONNECTION_ERRORS)
