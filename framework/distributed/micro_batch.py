"""How many exams a process can take at a time: what `train.micro_batch_size: auto` finds out on a GPU."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import torch
from accelerate import Accelerator

from framework.data.loading import BatchPlan, ExamSet, Sample, collate, hardest_sample
from framework.distributed.collectives import all_reduce_max
from framework.distributed.gather_exams import no_gather
from framework.distributed.resolve import strategy_of
from framework.exam import Batch
from framework.models.blocks import blocks_of_task, disable_activation_checkpointing, enable_activation_checkpointing
from framework.recipe import Recipe
from framework.runtime.console import print0

# Bytes of a parameter that learns which a step needs beside the pass that is tried: two averages of Adam's, the running
# average, and the gradient once more while the processes exchange it.
BESIDE = 16
USABLE = 0.95  # of the GPU; the rest is lost between blocks of memory


class OutOfGpuMemoryError(ValueError):
    """A GPU that is too small for the recipe as it is; says what to set."""


def largest_micro_batch(accelerator: Accelerator, recipe: Recipe, task: Any, exams: ExamSet, share: int) -> int:
    """The largest divisor of a process's share of which a forward and backward pass fits, on the least of the GPUs.

    What is tried are the longest report and the most views of all training exams. On a CPU, and under zero3 and fsdp,
    whose whole weights need not fit on one GPU, it is the whole share.

    Raises:
        OutOfGpuMemoryError: not even one exam fits.
    """
    if accelerator.device.type != "cuda" or strategy_of(recipe) in ("zero3", "fsdp"):
        return share
    hardest = hardest_sample(exams)
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    before = {name: buffer.clone() for name, buffer in task.named_buffers()}
    again = blocks_of_task(task) if recipe.distributed.activation_checkpointing else []
    for block in again:
        enable_activation_checkpointing(block)
    task.to(accelerator.device).train()
    found = next((size for size in sizes if _fits(accelerator, task, hardest, size)), 0)
    for block in again:
        disable_activation_checkpointing(block)  # the strategy copies the task before it changes it
    task.zero_grad(set_to_none=True)
    task.to("cpu")
    for name, buffer in task.named_buffers():
        buffer.copy_(before[name])  # the pass has counted in batch normalization
    gc.collect()
    torch.cuda.empty_cache()
    found = -all_reduce_max(accelerator, -found)
    if found == 0:
        total = torch.cuda.get_device_properties(accelerator.device).total_memory / 2**30
        raise OutOfGpuMemoryError(
            f"train.micro_batch_size: auto: not even one exam fits in {total:.0f} GiB. Try "
            "distributed.activation_checkpointing=true, a smaller data.image_size, or distributed.strategy=fsdp"
        )
    if found < share:
        print0(f"train.micro_batch_size: auto: {found} exams at a time fit, so the share of {share} is accumulated")
    return found


def _fits(accelerator: Accelerator, task: Any, hardest: Sample, size: int) -> bool:
    device = accelerator.device
    beside = BESIDE * sum(weight.numel() for weight in task.parameters() if weight.requires_grad)
    torch.cuda.reset_peak_memory_stats(device)
    batch: Batch | None = None
    with contextlib.suppress(torch.OutOfMemoryError), no_gather():  # what fits here may not fit there
        batch = collate([hardest] * size).to(device)
        with accelerator.autocast():
            output = task(batch)
        output.objective_L.sum().backward()
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_allocated(device) + beside < USABLE * total
    del batch
    gc.collect()
    torch.cuda.empty_cache()
    return False


def too_large(batch_plan: BatchPlan, step: int) -> OutOfGpuMemoryError:
    """What to say where a step did not fit, with the next size that would leave room."""
    share = batch_plan.batch_size // batch_plan.processes
    smaller = [size for size in range(1, batch_plan.micro_batch_size // 2 + 1) if share % size == 0]
    where = f"step {step}: out of GPU memory with micro-batches of {batch_plan.micro_batch_size} exams"
    if not smaller:
        return OutOfGpuMemoryError(
            f"{where}. Try distributed.activation_checkpointing=true, a smaller data.image_size, or a strategy that "
            "cuts more over the processes (distributed.strategy=zero2, zero3 or fsdp)"
        )
    return OutOfGpuMemoryError(
        f"{where}. train.micro_batch_size={smaller[-1]} needs about half of it; train.batch_size stays "
        f"{batch_plan.batch_size}, by accumulation over {share // smaller[-1]}"
    )
