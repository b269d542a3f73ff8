"""Fully sharded data parallel: each process holds a shard of every weight, gradient and optimizer state.

torch's fully_shard, not Accelerate's plugin, which is silently ignored on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from framework.distributed.strategy import Strategy
from framework.exam import Batch
from framework.models.blocks import blocks_of_task
from framework.task import TaskOutput


class FullyShardedDataParallel(Strategy):
    """FSDP2: parameters are sharded along their first dimension, and gathered block by block.

    Source:
        Zhao et al. 2023, arXiv 2304.11277; torch.distributed.fsdp.fully_shard.
    """

    def _wrap(self, build_optimizer: Callable[[nn.Module], Any]) -> None:
        device, task = self.accelerator.device, self.task
        mesh = init_device_mesh(device.type, (self.accelerator.num_processes,))
        for parameter in task.parameters():
            parameter.data = parameter.data.contiguous()  # fully_shard refuses other memory formats
        policy = CPUOffloadPolicy() if self.recipe.distributed.offload == "all" else OffloadPolicy()
        for block in blocks_of_task(task):
            fully_shard(block, mesh=mesh, offload_policy=policy)
        fully_shard(task, mesh=mesh, offload_policy=policy)
        for buffer in task.buffers():
            buffer.data = buffer.data.to(device)
        self.optimizer = build_optimizer(task)

    def __call__(self, batch: Batch) -> TaskOutput:
        with self.accelerator.autocast():
            return self.task(batch)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # synchronizes each micro-batch: accumulating without it would keep full gradients

    def step(self) -> Tensor:
        found: Any = nn.utils.clip_grad_norm_(self.task.parameters(), self.max_grad_norm)
        norm: Tensor = found.full_tensor() if isinstance(found, DTensor) else found
        gradients: list[Any] = [weight.grad for weight in self.task.parameters() if weight.grad is not None]
        self.clip_values(gradient.to_local() for gradient in gradients)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm
