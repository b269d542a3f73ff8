"""Runs cells on this machine at a low priority."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from pydantic import NonNegativeInt, PositiveInt

from framework.grid.executor import Job, State
from framework.registry import register


class MyHandle:
    """A started command."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def state(self) -> State:
        return "running" if self.process.poll() is None else "gone"

    def cancel(self) -> None:
        self.process.terminate()


@register("executor", "my_executor")
class MyExecutor:
    """A pool of processes with a raised niceness.

    Args:
        processes: Number of processes per cell. [processes]
        niceness: Increment of the niceness. [steps of nice]
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
            # In its own session Ctrl-C does not reach it: the scheduler asks cells to save.
            return MyHandle(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))

    def close(self) -> None:
        """Running cells continue."""
