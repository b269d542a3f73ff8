"""Cells on this machine, in the background: whatever else runs here goes first."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from pydantic import NonNegativeInt, PositiveInt

from framework.grid.executor import Job, State
from framework.registry import register


class MyHandle:
    """A command that was started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def state(self) -> State:
        return "running" if self.process.poll() is None else "gone"

    def cancel(self) -> None:
        self.process.terminate()


@register("executor", "my_executor")
class MyExecutor:
    """A pool on this machine, at a low priority.

    Args:
        processes: of each cell. [processes]
        niceness: how far behind other work. [steps of nice]
    """

    def __init__(self, *, processes: PositiveInt = 1, niceness: NonNegativeInt = 10, jobs: int | None = None) -> None:
        self.processes, self.niceness, self.jobs = processes, niceness, jobs or 1
        self.started: list[MyHandle] = []

    def room(self) -> int:
        return self.jobs - sum(handle.state() != "gone" for handle in self.started)

    def start(self, jobs: Sequence[Job]) -> list[MyHandle]:
        handles = [self._start(job) for job in jobs]
        self.started += handles
        return handles

    def _start(self, job: Job) -> MyHandle:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            command = ["nice", "-n", str(self.niceness), *job.command]
            # A session of its own: Ctrl-C is for the scheduler, which then lets its cells save.
            return MyHandle(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))

    def close(self) -> None:
        """Cells that run go on."""
