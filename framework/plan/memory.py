"""What each strategy keeps on each process, from what the recipe's optimizer really keeps.

Weights are in fp32 under every strategy, and half precision is autocast.

Source:
    ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, section 3: optimizer state, gradients and weights are cut over the
    processes one after the other. FSDP's full shard (Zhao et al. 2023, arXiv 2304.11277) cuts all three.
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

# What is cut over the processes, of: weights, gradients, optimizer state.
CUT = {
    "ddp": (False, False, False),
    "zero1": (False, False, True),
    "zero2": (False, True, True),
    "zero3": (True, True, True),
    "fsdp": (True, True, True),
}
FP32 = 4  # bytes
DEEPSPEED = ("zero1", "zero2", "zero3")  # its optimizer works on a copy of its own of the weights


@dataclass(frozen=True)
class Memory:
    """Bytes on each process. Buffers stand with the weights; no strategy cuts them."""

    strategy: str
    chosen: bool  # by the recipe
    weights: int
    gradients: int
    optimizer: int  # with the running average, if there is one
    activations: int | None
    together: int | None


def optimizer_bytes(recipe: Recipe) -> float:
    """Bytes that the recipe's optimizer keeps of each parameter in fp32: measured on a small one, after a step."""
    weight = nn.Parameter(torch.zeros(64, 64))
    groups = [Group("rest", [weight], recipe.optimizer.lr, decay=True)]
    optimizer: Any = build_plugin(recipe, "optimizer", recipe.optimizer, groups=groups)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in kept if tensor.numel() > 1) / weight.numel()  # a step's number is none


def memory_by_strategy(
    whole: Part, per_parameter: float, averaged: bool, activations: int | None, processes: int, chosen: str
) -> tuple[Memory, ...]:
    """A row for each strategy.

    Args:
        whole: all parts together.
        per_parameter: what `optimizer_bytes` gives.
        averaged: whether a running average of the weights is kept, see train.ema_decay.
    """
    rows = []
    for strategy, cut in CUT.items():
        beside = per_parameter + FP32 * averaged + FP32 * (strategy in DEEPSPEED)
        sizes = (FP32 * whole.parameters, FP32 * whole.trainable, beside * whole.trainable)
        weights, gradients, optimizer = (
            math.ceil(size / processes) if is_cut else math.ceil(size) for size, is_cut in zip(sizes, cut)
        )
        weights += whole.buffer_bytes
        together = None if activations is None else weights + gradients + optimizer + activations
        rows.append(Memory(strategy, strategy == chosen, weights, gradients, optimizer, activations, together))
    return tuple(rows)
