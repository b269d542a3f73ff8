"""Every process holds everything, and gradients are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from framework.distributed.strategy import Shard, Strategy, scalars_for
from framework.exam import Batch
from framework.task import TaskOutput


class DataParallel(Strategy):
    """torch's DistributedDataParallel through Accelerate; with one process, the task as it is.

    Source:
        Li et al. 2020, arXiv 2006.15704.
    """

    is_replicated = True

    def _wrap(self, build_optimizer: Callable[[nn.Module], Any]) -> None:
        self.optimizer = build_optimizer(self.task)
        self.wrapped, self.prepared = self.accelerator.prepare(self.task, self.optimizer)

    def __call__(self, batch: Batch) -> TaskOutput:
        return self.wrapped(batch)  # never .forward: wrappers hook the call

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        # It is forward that decides whether backward exchanges anything.
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self) -> Tensor:
        norm: Any = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.max_grad_norm)  # unscales first
        self.clip_values(weight.grad for weight in self.task.parameters() if weight.grad is not None)
        if self.accelerator.scaler is not None:
            self.prepared.step()  # the scaler skips an overflow and lowers its scale
        else:
            self.update_if_finite(self.prepared, norm)
        self.prepared.zero_grad()
        return norm

    def local_shards(self) -> Iterator[tuple[str, Shard]]:
        for name, parameter in self.task.named_parameters():
            kept = self.optimizer.state.get(parameter, {})
            tensors = {key: value for key, value in kept.items() if isinstance(value, Tensor)}
            states = {key: value for key, value in tensors.items() if value.shape == parameter.shape and key != "step"}
            scalars = {key: value for key, value in tensors.items() if key not in states}
            yield name, Shard(0, parameter.data, states, scalars)

    @torch.no_grad()
    def load_shard(self, name: str, whole: Tensor, states: Mapping[str, Tensor], scalars: Mapping[str, Tensor]) -> None:
        parameter = self.task.get_parameter(name)
        parameter.copy_(whole)
        if states or scalars:
            like = {key: torch.empty_like(parameter).copy_(value) for key, value in states.items()}
            self.optimizer.state[parameter] = {**scalars_for(self.optimizer, scalars, parameter), **like}
