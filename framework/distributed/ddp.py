"""Data parallel: every process holds the full model, and gradients are averaged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from framework.distributed.compiled import compile_task
from framework.distributed.strategy import Strategy
from framework.exam import Batch
from framework.task import TaskOutput


class DataParallel(Strategy):
    """torch's DistributedDataParallel through Accelerate; with one process, the task itself.

    Source:
        Li et al. 2020, arXiv 2006.15704.
    """

    is_replicated = True

    def _wrap(self, build_optimizer: Callable[[nn.Module], Any]) -> None:
        self.optimizer = build_optimizer(self.task)
        self.wrapped, self.prepared = self.accelerator.prepare(self.task, self.optimizer)
        if isinstance(self.wrapped, DistributedDataParallel):
            self.wrapped.broadcast_buffers = False  # at each forward pass: Strategy does, once a step
        compile_task(self.task, self.recipe.train.compile)
        self.trained = [parameter for parameter in self.task.parameters() if parameter.requires_grad]

    def __call__(self, batch: Batch) -> TaskOutput:
        return self.wrapped(batch)  # never .forward: wrappers hook the call

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        # Forward decides whether backward synchronizes gradients.
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self) -> Tensor:
        # Accelerate's own clipping and steps do the same and search the disk for other libraries each time.
        self.accelerator.unscale_gradients()
        norm = nn.utils.clip_grad_norm_(self.trained, self.max_grad_norm)
        self.clip_values(weight.grad for weight in self.trained if weight.grad is not None)
        if self.accelerator.scaler is not None:
            self.prepared.step()  # the scaler skips an overflow and lowers its scale
        else:
            self.update_if_finite(self.optimizer, norm)
        self.optimizer.zero_grad()
        return norm
