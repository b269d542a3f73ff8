"""What each strategy keeps on each process: the arithmetic of ZeRO, and what the recipe's optimizer really keeps.

Source:
    ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1 and figure 1: in half precision 2 bytes of weights, 2
    of gradients, and the optimizer's states with a master copy of the weights, cut over the processes one after the
    other. FSDP's full shard (Zhao et al. 2023, arXiv 2304.11277) cuts the same three, of weights kept in fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

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
DEEPSPEED = ("zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Memory:
    """Bytes on each process. Buffers stand with the weights; no strategy cuts them."""

    strategy: str
    offered: bool  # by distributed.strategy, today
    weights: int
    gradients: int
    optimizer: int
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
    whole: Part, per_parameter: float, activations: int | None, processes: int, half: bool, offered: tuple[str, ...]
) -> tuple[Memory, ...]:
    """A row for each strategy.

    Args:
        whole: all parts together.
        per_parameter: what `optimizer_bytes` gives.
        half: bf16 or fp16. DDP and FSDP then compute by autocast on weights in fp32; ZeRO's weights are halves, and its
            optimizer keeps a master copy.
    """
    rows = []
    for strategy, cut in CUT.items():
        mixed = half and strategy in DEEPSPEED
        width, master = (2, 4) if mixed else (4, 0)
        sizes = (width * whole.parameters, width * whole.trainable, (per_parameter + master) * whole.trainable)
        weights, gradients, optimizer = (
            math.ceil(size / processes) if is_cut else math.ceil(size) for size, is_cut in zip(sizes, cut)
        )
        weights += whole.buffer_bytes
        together = None if activations is None else weights + gradients + optimizer + activations
        rows.append(Memory(strategy, strategy in offered, weights, gradients, optimizer, activations, together))
    return tuple(rows)


def strategies_offered(recipe: Recipe) -> tuple[str, ...]:
    return get_args(type(recipe.distributed).model_fields["strategy"].annotation)
