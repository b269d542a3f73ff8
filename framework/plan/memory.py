"""Memory of each strategy on each process, with the measured state of the recipe's optimizer.

Weights are fp32 under every strategy; half precision is autocast.

Source:
    ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, section 3: stages 1 to 3 shard optimizer state, gradients and
    weights. FSDP's full shard (Zhao et al. 2023, arXiv 2304.11277) shards all three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from framework.build import build_plugin
from framework.optim import Group
from framework.plan.model import Part
from framework.recipe import Recipe

# Whether weights, gradients and optimizer state are sharded over the processes.
SHARDED = {
    "ddp": (False, False, False),
    "zero1": (False, False, True),
    "zero2": (False, True, True),
    "zero3": (True, True, True),
    "fsdp": (True, True, True),
}
FP32 = 4  # bytes
DEEPSPEED = ("zero1", "zero2", "zero3")  # its optimizer keeps another copy of the weights


@dataclass(frozen=True)
class Memory:
    """Bytes on each process. `weights` includes buffers, which no strategy shards."""

    strategy: str
    chosen: bool  # by the recipe
    weights: int
    gradients: int
    optimizer: int  # with the EMA weights, if there are any
    activations: int | None
    total: int | None


def optimizer_bytes(recipe: Recipe) -> float:
    """Bytes of optimizer state per fp32 parameter, measured on a small parameter after one step."""
    weight = nn.Parameter(torch.zeros(64, 64))
    groups = [Group("rest", [weight], recipe.optimizer.lr, decay=True)]
    optimizer: Any = build_plugin(recipe, "optimizer", recipe.optimizer, groups=groups)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1) / weight.numel()  # without step counters


def memory_by_strategy(
    model: Part, per_parameter: float, ema: bool, activations: int | None, processes: int, chosen: str
) -> tuple[Memory, ...]:
    """The memory of every strategy.

    Args:
        model: the sum of all parts.
        per_parameter: from `optimizer_bytes`.
        ema: whether EMA weights are kept (train.ema_decay).
    """
    rows = []
    for strategy, sharded in SHARDED.items():
        state = per_parameter + FP32 * ema + FP32 * (strategy in DEEPSPEED)
        sizes = (FP32 * model.parameters, FP32 * model.trainable, state * model.trainable)
        weights, gradients, optimizer = (
            math.ceil(size / processes) if is_sharded else math.ceil(size) for size, is_sharded in zip(sizes, sharded)
        )
        weights += model.buffer_bytes
        total = None if activations is None else weights + gradients + optimizer + activations
        rows.append(Memory(strategy, strategy == chosen, weights, gradients, optimizer, activations, total))
    return tuple(rows)
