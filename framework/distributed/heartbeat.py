"""Names the process that the others wait for, before the time-out ends them all, and tells a lost one plainly."""

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

BEAT_S = 2.0  # between two signs of life
WARN_SHARE, WARN_S = 0.5, 300.0  # a wait is told after half the time-out, and after five minutes at most
# What libraries say of a connection that broke, or of a wait that took too long.
LOST = ("connection closed", "connection reset", "connection refused", "timed out", "broken pipe", "by peer")


@dataclass
class Heartbeat:
    """What a process said last of itself, and when we saw it change."""

    rank: int
    moves: int
    where: str
    host: str
    pid: int
    moved_at: float
    alive_at: float
    signs: int
    patient: bool


class HangMonitor:
    """While it is open, every process shows through the launcher's store where it is, and looks at the others.

    Args:
        timeout: minutes that a process waits for the others.
    """

    def __init__(self, accelerator: Accelerator, timeout: float) -> None:
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        self.timeout_s = timeout * 60
        self.warn_s = min(WARN_SHARE * self.timeout_s, WARN_S)
        self._moves, self._where, self._patient = 0, "starting", False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, where: str, *, patient: bool = False) -> None:
        """Says where this process is. Costs nothing; the thread passes it on.

        Args:
            patient: one process works here while the others wait, for as long as it takes.
        """
        self._where, self._moves, self._patient = where, self._moves + 1, patient

    def __enter__(self) -> HangMonitor:
        if self.processes > 1:
            self._thread = threading.Thread(target=self._look_after, name="hang_monitor", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(BEAT_S)  # or it would talk to a store that ends with the process
        if self.processes > 1 and isinstance(error, RuntimeError) and _is_of_a_connection(error):
            raise ProcessLost(
                f"waited for the others at {self._where}, and one of them died, hangs or cannot be reached "
                f"({first_line(error)[:200]}). Go on from the last checkpoint with resume=auto"
            ) from error

    def _look_after(self) -> None:
        try:
            store = self._store()
        except (RuntimeError, ValueError, KeyError) as error:
            print(f"rank {self.rank}: no watch over the other processes ({error})", file=sys.stderr)
            return
        beats: dict[int, Heartbeat] = {}
        told: set[tuple[int, int]] = set()
        signs = 0
        while not self._ended.wait(BEAT_S):
            signs += 1
            try:
                mine = [self._moves, self._where, socket.gethostname(), os.getpid(), signs, self._patient]
                store.set(f"{self.rank}", json.dumps(mine))
                for rank in range(self.processes):
                    if store.check([f"{rank}"]):
                        _read(beats, rank, json.loads(store.get(f"{rank}")))
            except (RuntimeError, ValueError):
                return  # the store went with the process that kept it, which every process will notice
            self._tell(beats, told)

    def _store(self) -> Any:
        """A connection of its own: the one that the backend uses may be in use."""
        client = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=min(30.0, self.timeout_s)),
            wait_for_workers=False,
        )
        return dist.PrefixStore(f"watch/{restarts()}", client)

    def _tell(self, beats: dict[int, Heartbeat], told: set[tuple[int, int]]) -> None:
        now = time.monotonic()
        if len(beats) < self.processes or any(now - beat.moved_at < self.warn_s for beat in beats.values()):
            return  # somebody moves, so nobody is stuck
        least = min(beat.moves for beat in beats.values())
        frozen = [beat for beat in beats.values() if now - beat.alive_at > 5 * BEAT_S]
        if not frozen and any(beat.patient for beat in beats.values()):
            return
        behind = frozen or [beat for beat in beats.values() if beat.moves == least]
        if len(behind) == self.processes:
            behind = []  # all at the same point: each shows its own place
        key = (least, len(behind))
        if key in told:
            return
        told.add(key)
        waiting = [beat.rank for beat in beats.values() if beat not in behind] if behind else []
        if waiting and self.rank == waiting[0]:
            for beat in behind:
                state = "does not answer" if beat in frozen else "has not moved"
                print(
                    f"rank {beat.rank} (host {beat.host}, pid {beat.pid}) {state} for {now - beat.moved_at:.0f} s, "
                    f"last at {beat.where}; the others wait. The run ends when they have waited "
                    f"{self.timeout_s / 60:g} minutes (distributed.timeout)",
                    file=sys.stderr,
                    flush=True,
                )
        if self.rank not in waiting:
            print(f"rank {self.rank} is at {self._where}, here:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)


def _read(beats: dict[int, Heartbeat], rank: int, said: list[Any]) -> None:
    moves, where, host, pid, signs, patient = said
    now, before = time.monotonic(), beats.get(rank)
    moved_at = before.moved_at if before and before.moves == moves else now
    alive_at = before.alive_at if before and before.signs == signs else now
    beats[rank] = Heartbeat(rank, moves, where, host, pid, moved_at, alive_at, signs, patient)


def _is_of_a_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in LOST)
