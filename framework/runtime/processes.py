"""Processes: identified by id and start time, since ids are reused; and those that a command starts."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from pathlib import Path

import psutil

import framework
from framework.runtime.errors import UserError

# The command line, to start by its path: `-m framework.cli` would look in the working folder first.
COMMAND_LINE = Path(framework.__file__).with_name("cli") / "__main__.py"
PROC = Path("/proc")
PR_SET_PDEATHSIG = 1  # of prctl(2)

# How many copies of a command srun, mpirun, MPICH, MVAPICH, jsrun and Flux start, in the order in which they are tried.
TASK_COUNTS = (
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
    "FLUX_JOB_SIZE",
)


def process_start_time(pid: int) -> float | None:
    """The start time of a process, comparable on the same machine only; None if it has ended or is a zombie."""
    if (PROC / "self").exists():
        try:  # ticks since boot; psutil's time of day changes when the clock is set
            fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else float(fields[19])
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return float(process.create_time())
    return None


def usable_cores() -> int:
    """The number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Lets the kernel end this process when the process that started it ends, however it ends. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it ended before this call
        os._exit(1)


def require_shared_locks(purpose: str, hint: str = "") -> None:
    """Checks that processes can share locks, as every pool of processes and every loader with workers needs.

    Args:
        purpose: what the processes do: "decode images".

    Raises:
        UserError: `no-shared-memory`.
    """
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise UserError(
            "no-shared-memory",
            f"processes that {purpose} cannot share a lock here: {error.strerror}",
            place="/dev/shm",  # where the C library keeps the locks
            expected="a writable folder in memory with some free space",
            hint=f"In a container, see its option --shm-size. {hint}".strip(),
        ) from None
