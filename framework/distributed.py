"""The one place that configures Accelerate."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object

from framework.image_cache import usable_cores
from framework.recipe import Recipe, RecipeError


def start_accelerator(recipe: Recipe) -> Accelerator:
    """An Accelerator that takes precision from the recipe, and processes from the launcher.

    Raises:
        RecipeError: the launcher sets what the recipe owns, or this machine cannot do what the recipe asks for.
    """
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        raise RecipeError(
            f"The launcher sets gradient_accumulation_steps={accumulation}, but accumulation follows from the recipe: "
            f"train.batch_size {recipe.train.batch_size}, train.micro_batch {recipe.train.micro_batch}. "
            "Leave the flag out and set train.micro_batch."
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise RecipeError(
            "The launcher asks for DeepSpeed or FSDP, but distributed.strategy is "
            f"'{recipe.distributed.strategy}' and offers auto and ddp. Launch with --multi_gpu."
        )
    cpu = _on_cpu()
    if cpu and "ACCELERATE_MIXED_PRECISION" in os.environ:
        # Only `accelerate launch` exports that. It grants one thread unless told otherwise, which leaves cores idle.
        torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    handlers = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # On a CPU accelerate must be told of gloo, or it may believe in one process; a single process must not be
        # told. The others wait while the first simulates or decodes images, which may take long.
        backend = "gloo" if cpu else "nccl"
        handlers = [InitProcessGroupKwargs(backend=backend, timeout=timedelta(hours=2))]
    precision = precision_of(recipe)
    if precision == "fp16" and cpu:
        raise RecipeError("train.precision: fp16 needs a GPU; expected auto, fp32 or bf16 on this machine")
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=handlers)


def _on_cpu() -> bool:
    return not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU") == "true"


def precision_of(recipe: Recipe) -> str:
    """fp32, bf16 or fp16. `auto` is settled by the machine: bf16 on a GPU that has it, else fp32."""
    if recipe.train.precision != "auto":
        return recipe.train.precision
    return "bf16" if not _on_cpu() and torch.cuda.is_bf16_supported() else "fp32"


def from_main(accelerator: Accelerator, value: Any) -> Any:
    """The main process's value, on every process: what one process decides must be decided once."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def gather(accelerator: Accelerator, values: list[Any]) -> list[Any]:
    """The lists of all processes, one after the other, on every process."""
    return values if accelerator.num_processes == 1 else gather_object(values)


def describe_launch(accelerator: Accelerator) -> dict[str, Any]:
    """The effective settings, which are printed once and stored with the run."""
    device = accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "distributed": str(accelerator.distributed_type.value),
        "precision": {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
        "threads": torch.get_num_threads(),
    }
