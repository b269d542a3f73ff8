"""The exams of all processes' micro-batches side by side, for a loss that compares exams with one another.

A loss never asks for its rank: it calls `gather_exams`, on one process as on many.

Shapes: B exams of this process, N of all, X whatever there is of each.
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
from framework.recipe import RecipeError

_gather_disabled = False


def gather_exams(rows_BX: Tensor, *, pad: float = 0) -> tuple[Tensor, int]:
    """The rows of all processes, [N, X], in the order of the processes, and where among them this process's begin.

    The gradient goes to the process that a row came from, summed over what all have made of it. Processes may have
    other numbers of rows, and rows of another length, which are padded at their end. All must call it equally often.
    """
    if _gather_disabled or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows_BX, 0
    shape = torch.tensor(rows_BX.shape, device=rows_BX.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    sizes, lengths = zip(*(each.tolist() for each in shapes))
    rows_BX = padded(rows_BX, (0, max(lengths) - rows_BX.shape[1]), value=pad)
    rows_NX: Tensor = _Gather.apply(rows_BX, sizes)  # type: ignore[no-untyped-call]
    return rows_NX, sum(sizes[: dist.get_rank()])


def micro_batch_notice(losses: Mapping[str, Any], batch_plan: BatchPlan) -> str | None:
    """What to say where losses compare exams with one another, and see fewer at a time than a step has.

    Raises:
        RecipeError: they see a single exam, and so nothing to compare it with.
    """
    mixing = [name for name, loss in losses.items() if getattr(loss, "mixes_exams", False)]
    seen = batch_plan.micro_batch_size * batch_plan.processes
    if not mixing or seen == batch_plan.batch_size > 1:
        return None
    named = " and ".join(f"losses.{name}" for name in mixing)
    if seen == 1:
        raise RecipeError(
            f"{named} compares the exams of a micro-batch with one another, and there is one alone: expected a larger "
            "train.micro_batch_size, or more processes"
        )
    return (
        f"{named} compares {seen} exams at a time, micro-batches of {batch_plan.micro_batch_size} on each of "
        f"{batch_plan.processes} processes, not {batch_plan.batch_size}, so results depend on this cut. A larger "
        "train.micro_batch_size compares more"
    )


@contextmanager
def no_gather() -> Iterator[None]:
    """In here `gather_exams` gives this process's rows alone: for what one process tries without the others."""
    global _gather_disabled
    before, _gather_disabled = _gather_disabled, True
    try:
        yield
    finally:
        _gather_disabled = before


class _Gather(torch.autograd.Function):
    """Rows of unequal numbers from all; gradients of the rows, summed over all, back to where they are from."""

    @staticmethod
    def forward(ctx: Any, rows_BX: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        most = max(sizes)
        sent = padded(rows_BX, (0, 0, 0, most - len(rows_BX))).contiguous()
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx: Any, gradient_NX: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        summed_NX = gradient_NX.contiguous().clone()
        dist.all_reduce(summed_NX)
        mine: Tensor = summed_NX.split(ctx.sizes)[dist.get_rank()]
        return mine, None
