"""Resolves the recipe's `auto`: the precision and strategy of a run on this machine."""

from __future__ import annotations

import torch

from framework.models.device import on_cpu
from framework.recipe import Recipe


def precision_of(recipe: Recipe) -> str:
    """fp32, bf16 or fp16. `auto` is bf16 on a GPU that supports it, else fp32."""
    if recipe.train.precision != "auto":
        return recipe.train.precision
    return "bf16" if not on_cpu() and torch.cuda.is_bf16_supported() else "fp32"


def strategy_of(recipe: Recipe) -> str:
    """ddp, zero1, zero2, zero3 or fsdp. `auto` is ddp."""
    strategy = recipe.distributed.strategy
    return "ddp" if strategy == "auto" else strategy
