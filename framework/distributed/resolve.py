"""What a recipe leaves to the machine, settled: the device, precision and strategy of a run."""

from __future__ import annotations

import torch

from framework.models.device import on_cpu
from framework.recipe import Recipe


def precision_of(recipe: Recipe) -> str:
    """fp32, bf16 or fp16. `auto` is settled by the machine: bf16 on a GPU that has it, else fp32."""
    if recipe.train.precision != "auto":
        return recipe.train.precision
    return "bf16" if not on_cpu() and torch.cuda.is_bf16_supported() else "fp32"


def strategy_of(recipe: Recipe) -> str:
    """ddp, zero1, zero2, zero3 or fsdp."""
    asked = recipe.distributed.strategy
    return "ddp" if asked == "auto" else asked
