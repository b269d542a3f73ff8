"""Gathers the exams of all processes' micro-batches, for a loss that compares exams with one another.

A loss never asks for its rank: it calls `gather_exams` on any number of processes.

Shapes: B exams of this process, N exams of all processes, X features of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad as padded

from framework.data.loading import BatchPlan
from framework.runtime.errors import UserError

_gather_enabled = True


def gather_exams(rows_BX: Tensor, *, pad: float = 0) -> tuple[Tensor, int]:
    """Returns the rows of all processes in the order of their ranks, [N, X], and the index of this process's first row.

    The gradient of a row is summed over all processes and returned to the process that the row came from. B and X may
    differ between processes; shorter rows are padded at their end with `pad`. All processes must call it equally often.
    """
    if not _gather_enabled or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows_BX, 0
    shape = torch.tensor(rows_BX.shape, device=rows_BX.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    sizes, lengths = zip(*(each.tolist() for each in shapes))
    rows_BX = padded(rows_BX, (0, max(lengths) - rows_BX.shape[1]), value=pad)
    rows_NX: Tensor = _GatherRows.apply(rows_BX, sizes)  # type: ignore[no-untyped-call]
    return rows_NX, sum(sizes[: dist.get_rank()])


@contextmanager
def no_gather() -> Iterator[None]:
    """In this context `gather_exams` returns the rows of this process: for a pass that this process makes alone."""
    global _gather_enabled
    before, _gather_enabled = _gather_enabled, False
    try:
        yield
    finally:
        _gather_enabled = before


def micro_batch_notice(losses: Mapping[str, Any], batch_plan: BatchPlan) -> str | None:
    """Returns a notice if losses compare exams with one another, and a micro-batch has fewer exams than a step.

    Raises:
        UserError: the micro-batches of all processes together have a single exam, which leaves nothing to compare.
    """
    names = [name for name, loss in losses.items() if getattr(loss, "mixes_exams", False)]
    exams = batch_plan.micro_batch_size * batch_plan.processes
    if not names or exams == batch_plan.batch_size > 1:
        return None
    keys = " and ".join(f"losses.{name}" for name in names)
    if exams == 1:
        raise UserError(
            "does-not-fit",
            "this loss compares the exams of a micro-batch with one another, and a micro-batch has one exam",
            place=keys,
            hint="Set a larger train.micro_batch_size, or start more processes.",
        )
    return (
        f"{keys} compares {exams} exams at a time (micro-batches of {batch_plan.micro_batch_size} on "
        f"{batch_plan.processes} processes), not {batch_plan.batch_size}, so results depend on the micro-batch size. "
        "A larger train.micro_batch_size compares more exams"
    )


class _GatherRows(torch.autograd.Function):
    """All-gather of different numbers of rows; backward is a reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, rows_BX: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        rows = padded(rows_BX, (0, 0, 0, max(sizes) - len(rows_BX))).contiguous()
        parts = [torch.empty_like(rows) for _ in sizes]
        dist.all_gather(parts, rows)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx: Any, gradient_NX: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        sum_NX = gradient_NX.contiguous().clone()
        dist.all_reduce(sum_NX)
        gradient_BX: Tensor = sum_NX.split(ctx.sizes)[dist.get_rank()]
        return gradient_BX, None
