"""What starts cells somewhere: the contract of the plugins of kind `executor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

State = Literal["waiting", "running", "gone"]


@dataclass(frozen=True)
class Job:
    """A command that trains one cell. It leaves all that it has to say in the cell's folder, on a shared disk."""

    name: str  # for queues and people: no spaces
    command: tuple[str, ...]
    log: Path  # what the command prints is added to it


class Handle(Protocol):
    """A job that was started."""

    def state(self) -> State:
        """`waiting` in a queue, `running`, or `gone`: ended, for whatever reason."""

    def cancel(self) -> None:
        """Ends it: SIGTERM where it runs, so that it saves first; out of the queue where it waits."""


class Executor(Protocol):
    """Made with the grid file's keys and, where its signature has them, these run-time values:

    jobs: how many cells at once, as the user asked; None: as many as there is room for.
    folder: for the executor's own files; it may not exist yet.
    """

    processes: int  # of each cell, which `accelerate launch` starts

    def room(self) -> int:
        """How many more jobs it would take now."""

    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Starts jobs, or queues them, in the working directory of this process; no more than there is room for.

        Raises:
            ValueError: they cannot be started here, and why.
        """

    def close(self) -> None:
        """Lets go of what it holds. Jobs that run go on, where the executor can let them."""
