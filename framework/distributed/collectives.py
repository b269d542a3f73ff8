"""What the processes of a run tell each other. With one process, nothing is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from framework.runtime.errors import MainProcessFailed

T = TypeVar("T")


def on_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """What the main process gets from `function`, on every process: what one process decides must be decided once.

    Raises:
        MainProcessFailed: the function failed; the main process raises its own error.
    """
    if accelerator.num_processes == 1:
        return function()
    failed: Exception | None = None
    told: list[Any] = [None, False]
    if accelerator.is_main_process:
        try:
            told = [function(), True]
        except Exception as error:
            failed = error
    value, worked = broadcast_object_list(told)
    if failed is not None:
        raise failed
    if not worked:
        raise MainProcessFailed("the main process could not go on")
    return value


def gather(accelerator: Accelerator, values: list[Any]) -> list[Any]:
    """The lists of all processes, one after the other, on every process."""
    return values if accelerator.num_processes == 1 else gather_object(values)


def all_reduce_max(accelerator: Accelerator, number: int) -> int:
    """The largest of what the processes say, on every process."""
    if accelerator.num_processes == 1:
        return number
    said = torch.tensor([number], device=accelerator.device)
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return int(said)


def broadcast(accelerator: Accelerator, tensors: list[Tensor]) -> None:
    """Overwrites tensors with the main process's, which have the same shapes, in one message for each number format."""
    if accelerator.num_processes == 1:
        return
    by_format: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_format.setdefault(tensor.dtype, []).append(tensor)
    for group in by_format.values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in group]).to(accelerator.device)
        dist.broadcast(flat, src=0)
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group])):
            tensor.detach().copy_(part.view(tensor.shape))


@contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """The main process first, then the first process of every other machine, then the rest.

    So what goes to a cache is made once for each file system, whether or not the machines share one.
    """
    turn = 0 if accelerator.is_main_process else 1 if accelerator.is_local_main_process else 2
    for _ in range(turn):
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        for _ in range(2 - turn):
            accelerator.wait_for_everyone()
