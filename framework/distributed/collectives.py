"""Communication between the processes of a run. With one process, nothing is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from framework.models.device import DeferredNumber
from framework.runtime.errors import MainProcessFailed

T = TypeVar("T")


def on_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Calls `function` on the main process and returns its result on every process.

    Raises:
        MainProcessFailed: on the other processes, if `function` raises; the main process raises its own error.
    """
    if accelerator.num_processes == 1:
        return function()
    error: Exception | None = None
    result: list[Any] = [None, False]
    if accelerator.is_main_process:
        try:
            result = [function(), True]
        except Exception as raised:
            error = raised
    value, succeeded = broadcast_object_list(result)
    if error is not None:
        raise error
    if not succeeded:
        raise MainProcessFailed("the main process failed")
    return value


def gather(accelerator: Accelerator, values: list[Any]) -> list[Any]:
    """Concatenates the lists of all processes, in the order of their ranks, on every process."""
    return values if accelerator.num_processes == 1 else gather_object(values)


def all_reduce_sum(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Returns the sum over all processes; with one process, the tensor itself."""
    if accelerator.num_processes == 1:
        return tensor
    total: Tensor = accelerator.reduce(tensor, "sum")
    return total


def all_reduce_max(accelerator: Accelerator, number: int) -> int:
    """Returns the maximum over all processes."""
    if accelerator.num_processes == 1:
        return number
    return int(_start_max(accelerator, number).read())


class DelayedMax:
    """The maximum over all processes; on GPUs that of the call before, so that no process waits for its device.

    Called equally often on every process.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.before: DeferredNumber | None = None

    def __call__(self, number: int) -> int:
        if self.accelerator.num_processes == 1 or self.accelerator.device.type != "cuda":
            return all_reduce_max(self.accelerator, number)
        before, self.before = self.before, _start_max(self.accelerator, number)
        return 0 if before is None else int(before.read())


def _start_max(accelerator: Accelerator, number: int) -> DeferredNumber:
    maximum = torch.full((1,), number, device=accelerator.device)  # `torch.tensor` would wait for its copy
    dist.all_reduce(maximum, op=dist.ReduceOp.MAX)
    return DeferredNumber(maximum)


def broadcast(accelerator: Accelerator, tensors: list[Tensor]) -> None:
    """Overwrites tensors in place with those of the main process, in one message per dtype. Shapes must be equal."""
    if accelerator.num_processes == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in group]).to(accelerator.device)
        dist.broadcast(flat, src=0)
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group])):
            tensor.detach().copy_(part.view(tensor.shape))


@contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Runs the block on the main process, then on the first process of every other machine, then on the rest.

    A cache is then built once per file system, whether or not the machines share one. accelerate has
    `main_process_first` and `local_main_process_first`; neither does both.
    """
    turn = 0 if accelerator.is_main_process else 1 if accelerator.is_local_main_process else 2
    for _ in range(turn):
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        for _ in range(2 - turn):
            accelerator.wait_for_everyone()
