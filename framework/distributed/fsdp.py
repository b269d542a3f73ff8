"""Each process holds a share of every weight, gradient and optimizer state; weights meet for the block that needs them.

torch's own fully_shard, not Accelerate's plugin, which does nothing on a CPU and does not say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from framework.distributed.strategy import Shard, Strategy, scalars_for
from framework.exam import Batch
from framework.models.blocks import blocks_of_task
from framework.task import TaskOutput


class FullyShardedDataParallel(Strategy):
    """FSDP2: parameters are cut along their first dimension, and gathered block by block.

    Source:
        Zhao et al. 2023, arXiv 2304.11277; torch.distributed.fsdp.fully_shard.
    """

    def _wrap(self, build_optimizer: Callable[[nn.Module], Any]) -> None:
        device, task = self.accelerator.device, self.task
        mesh = init_device_mesh(device.type, (self.accelerator.num_processes,))
        for parameter in task.parameters():
            parameter.data = parameter.data.contiguous()  # it cuts no other layout
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
        loss.backward()  # each micro-batch is exchanged, as whole gradients would have to be kept until the last

    def step(self) -> Tensor:
        found: Any = nn.utils.clip_grad_norm_(self.task.parameters(), self.max_grad_norm)
        norm = found.full_tensor() if isinstance(found, DTensor) else found
        self.clip_values(_local(weight.grad) for weight in self.task.parameters() if weight.grad is not None)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def local_shards(self) -> Iterator[tuple[str, Shard]]:
        for name, parameter in self.task.named_parameters():
            start = self._start(self.shapes[name])
            kept = self.optimizer.state.get(parameter, {})
            states = {key: _local(value) for key, value in kept.items() if isinstance(value, DTensor)}
            scalars = {
                key: value
                for key, value in kept.items()
                if isinstance(value, Tensor) and not isinstance(value, DTensor)
            }
            yield name, Shard(start, _local(parameter), states, scalars)

    @torch.no_grad()
    def load_shard(self, name: str, whole: Tensor, states: Mapping[str, Tensor], scalars: Mapping[str, Tensor]) -> None:
        parameter: Any = self.task.get_parameter(name)
        mine = _local(parameter)
        start = self._start(self.shapes[name])

        def cut(value: Tensor) -> Tensor:
            return value.reshape(-1)[start : start + mine.numel()]

        mine.copy_(cut(whole))
        if states or scalars:
            like = {}
            for key, value in states.items():
                like[key] = torch.zeros_like(parameter)
                _local(like[key]).copy_(cut(value))
            self.optimizer.state[parameter] = {**scalars_for(self.optimizer, scalars, mine), **like}

    def _start(self, shape: torch.Size) -> int:
        """Where this process's rows begin, as torch.chunk deals them out."""
        rows, processes = shape[0], self.accelerator.num_processes
        each = math.ceil(rows / processes)
        return min(self.accelerator.process_index * each, rows) * (shape.numel() // rows)


def _local(tensor: Any) -> Tensor:
    """This process's rows, flattened: a view."""
    return tensor.detach().to_local().view(-1)
