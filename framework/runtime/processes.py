"""Identifies processes by id and start time, since ids are reused."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

import framework

# The command line, to start by its path: `-m framework.cli` would look in the working folder first.
COMMAND_LINE = Path(framework.__file__).with_name("cli") / "__main__.py"
PROC = Path("/proc")

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
