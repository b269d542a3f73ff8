"""Cells as processes on this machine."""

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
from framework.runtime.errors import UserError
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
    """Processes on this machine.

    With GPUs, each cell has its own, also next to other `grid run`s of this user; without, cells share the cores. A
    cell outlives the `grid run` that started it.

    Args:
        processes: Processes per cell, one per GPU. [processes]
    """

    def __init__(self, *, processes: PositiveInt = 1, jobs: int | None = None) -> None:
        self.processes = processes
        self.gpus = _gpus()
        if self.gpus and len(self.gpus) < processes:
            found = f"found {processes}"
            raise UserError(
                "does-not-fit", found, place="executor.processes", expected=f"at most {len(self.gpus)} GPUs"
            )
        self.jobs = jobs or max(1, len(self.gpus) // processes)
        self.running: list[LocalHandle] = []
        self.held: list[tuple[str, IO[str]]] = []  # GPUs for the next cells

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
                    start_new_session=True,  # Ctrl-C goes to the scheduler alone, which lets its cells save
                    pass_fds=[lock.fileno() for _, lock in held],
                )
            for _, lock in held:
                lock.close()  # the cell has inherited it, and holds it for as long as it lives
            handles.append(LocalHandle(process))
        self.running += handles
        self.close()
        return handles

    def close(self) -> None:
        """Releases GPUs without a cell; running cells continue."""
        for _, lock in self.held:
            lock.close()
        self.held = []


def _gpus() -> list[str]:
    """The GPUs that this process may use, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        return []
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() and gpu.strip() != "-1"]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _take_gpus(gpus: Sequence[str], wanted: int) -> list[tuple[str, IO[str]]]:
    """Locks up to `wanted` free GPUs. `flock` and not the package filelock: a cell inherits the open file, so that its
    GPU is locked until it ends, even after the scheduler is killed.
    """
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
