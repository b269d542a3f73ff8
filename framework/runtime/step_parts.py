"""Names the parts of a step for a profiler."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch.autograd import profiler

# Parts of a step in their order. `communication` happens within the others.
PARTS = ("data wait", "forward", "backward", "optimizer", "log")


def step_part(name: str) -> AbstractContextManager[object]:
    """Labels what runs inside in the trace of a profiler; without one, does nothing."""
    return profiler.record_function(name) if profiler._is_profiler_enabled else nullcontext()
