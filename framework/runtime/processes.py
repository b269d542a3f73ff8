"""Whether a process still lives. Numbers of processes come again, so one is known by its number and its birth."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

PROC = Path("/proc")


def process_start_time(pid: int) -> float | None:
    """When a process began, in a unit of its own machine; None for one that is dead, or a zombie."""
    if (PROC / "self").exists():
        try:  # the kernel's own count: psutil's time of day moves when the clock is set
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
    """Cores that this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
