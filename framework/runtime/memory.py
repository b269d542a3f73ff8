"""How much memory this process may use, and which errors say that it asked for more."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import psutil

# Limits of a container, by cgroups of version 2 and 1.
CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int:
    """The memory of this machine, or the limit of the container or shell if that is less."""
    limits = [psutil.virtual_memory().total]
    for file in CGROUP:
        with contextlib.suppress(OSError, ValueError):  # no such cgroup, or "max"
            limits.append(int(Path(file).read_text()))
    shell = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min([*limits, shell] if shell != resource.RLIM_INFINITY else limits)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, numpy or Python says that an allocation failed."""
    # torch raises a subclass of RuntimeError on a GPU, a plain one on the CPU.
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text)
    )


def is_beyond_memory(error: BaseException) -> bool:
    """Whether an error of a part that is built says that it is larger than memory, or that its size is no number of
    bytes.
    """
    # torch raises RuntimeError or TypeError for sizes beyond 64 bits.
    too_long = isinstance(error, (RuntimeError, TypeError)) and "verflow" in str(error)
    return isinstance(error, OverflowError) or too_long or is_out_of_memory(error)
