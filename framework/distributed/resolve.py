"""Resolves the recipe's `auto`: the precision and strategy of a run on this machine."""

from __future__ import annotations

import torch

from framework.models.device import on_cpu
from framework.recipe import Recipe

WIDE = 512  # bf16 gains less on a CPU the narrower the decoder is, and slows generation by one of width 192


def precision_of(recipe: Recipe) -> str:
    """fp32, bf16 or fp16. `auto` is bf16 on a GPU that supports it, and on a CPU that does for decoders of width `WIDE`
    or more; else fp32."""
    if recipe.train.precision != "auto":
        return recipe.train.precision
    if on_cpu():
        return "bf16" if recipe.model.decoder.keys.get("width", 0) >= WIDE and cpu_multiplies_bf16() else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products of bf16 matrices, AMX or AVX512-BF16. Without, bf16 is slow."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def precision_notice(recipe: Recipe) -> str | None:
    """What `auto` has chosen, where it differs between CPUs."""
    if recipe.train.precision != "auto" or not on_cpu() or precision_of(recipe) != "bf16":
        return None
    return (
        "train.precision=auto is bf16, since this CPU multiplies bf16 matrices and the decoder is at least "
        f"{WIDE} wide; train.precision=fp32 trains in fp32"
    )


def strategy_of(recipe: Recipe) -> str:
    """ddp, zero1, zero2, zero3 or fsdp. `auto` is ddp."""
    strategy = recipe.distributed.strategy
    return "ddp" if strategy == "auto" else strategy
