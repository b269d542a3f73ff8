"""Cells on this machine: as many at once as it has GPUs for, or as the user asks."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import PositiveInt

from framework.grid.executor import Job, State
from framework.registry import register
from framework.runtime.processes import usable_cores


@dataclass
class LocalHandle:
    process: subprocess.Popen[bytes]

    def state(self) -> State:
        return "running" if self.process.poll() is None else "gone"

    def cancel(self) -> None:
        self.process.terminate()


@register("executor", "local")
class Local:
    """A pool on this machine.

    With GPUs, each cell gets some of its own, also beside other `grid run`s of this user; on a CPU, cells share the
    cores. A cell outlives the `grid run` that started it.

    Args:
        processes: of each cell: GPUs, or processes on a CPU. [processes]
    """

    def __init__(self, *, processes: PositiveInt = 1, jobs: int | None = None) -> None:
        self.processes = processes
        self.gpus = _gpus()
        if self.gpus and len(self.gpus) < processes:
            raise ValueError(f"executor local: a cell takes {processes} GPUs, and this machine has {len(self.gpus)}")
        self.jobs = jobs or max(1, len(self.gpus) // processes)
        self.running: list[LocalHandle] = []
        self.held: list[tuple[str, IO[str]]] = []  # GPUs that the next cells get

    def room(self) -> int:
        self.running = [handle for handle in self.running if handle.state() != "gone"]
        room = self.jobs - len(self.running)
        if self.gpus:
            self.close()
            self.held = _take_gpus(self.gpus, max(0, room) * self.processes)
            room = len(self.held) // self.processes
        return room

    def start(self, jobs: Sequence[Job]) -> list[LocalHandle]:
        handles = []
        for job in jobs:
            environment = dict(os.environ)
            held, self.held = self.held[: self.processes], self.held[self.processes :]
            if self.gpus:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu for gpu, _ in held)
            elif "OMP_NUM_THREADS" not in environment:
                threads = max(1, usable_cores() // (self.jobs * self.processes))
                environment["OMP_NUM_THREADS"] = str(threads)
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with job.log.open("ab") as log:
                process = subprocess.Popen(
                    job.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for the scheduler, which then asks its cells to save
                    pass_fds=[lock.fileno() for _, lock in held],
                )
            for _, lock in held:
                lock.close()  # the cell holds it on, for as long as it lives
            handles.append(LocalHandle(process))
        self.running += handles
        self.close()
        return handles

    def close(self) -> None:
        """Gives back GPUs that no cell was started on; cells that run go on."""
        for _, lock in self.held:
            lock.close()
        self.held = []


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        return []
    if said is not None:
        return [gpu.strip() for gpu in said.split(",") if gpu.strip() and gpu.strip() != "-1"]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _take_gpus(gpus: Sequence[str], wanted: int) -> list[tuple[str, IO[str]]]:
    """Up to `wanted` GPUs that no cell holds, each with the lock that says so for as long as it is open somewhere."""
    folder = Path(tempfile.gettempdir()) / f"sonoscribe-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    taken: list[tuple[str, IO[str]]] = []
    for gpu in gpus:
        if len(taken) == wanted:
            break
        lock = (folder / gpu.replace("/", "_")).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken.append((gpu, lock))
        except BlockingIOError:
            lock.close()
    return taken
