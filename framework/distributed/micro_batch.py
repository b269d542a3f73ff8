"""`train.micro_batch_size: auto`: finds the largest micro-batch that fits on the GPUs.

accelerate's `find_executable_batch_size` is not used: it only reacts to the text of an exception, while a size must
also leave room for optimizer state that a trial does not have, divide the process's share, and fit on all processes.
"""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace
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
from framework.runtime.errors import UserError

# Bytes per trainable parameter that a step needs beyond the trial pass: two moments of Adam, the EMA, and the gradient
# bucket while processes exchange it.
STEP_BYTES = 16
USABLE = 0.95  # fraction of GPU memory; the rest is lost to fragmentation


def resolve_batch_plan(accelerator: Accelerator, recipe: Recipe, task: Any, exams: ExamSet) -> BatchPlan:
    """How the recipe's global batch is divided over the processes, and into micro-batches that fit the device."""
    size = recipe.train.micro_batch_size
    place = accelerator.process_index, accelerator.num_processes
    plan = BatchPlan.plan(recipe.train.batch_size, None if size == "auto" else size, *place)
    if size != "auto":
        return plan
    return replace(plan, micro_batch_size=largest_micro_batch(accelerator, recipe, task, exams, plan.micro_batch_size))


def largest_micro_batch(accelerator: Accelerator, recipe: Recipe, task: Any, exams: ExamSet, share: int) -> int:
    """Returns the largest divisor of `share` whose forward and backward pass fits on every process's GPU.

    A trial uses the longest report and the most views of all training exams. Returns `share` on a CPU, and under
    zero3 and fsdp, where full weights need not fit on one GPU.

    Args:
        share: exams of a step on one process.

    Raises:
        UserError: not even one exam fits.
    """
    if accelerator.device.type != "cuda" or strategy_of(recipe) in ("zero3", "fsdp"):
        return share
    hardest = hardest_sample(exams)
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    before = {name: buffer.clone() for name, buffer in task.named_buffers()}
    blocks = blocks_of_task(task) if recipe.distributed.activation_checkpointing else []
    for block in blocks:
        enable_activation_checkpointing(block)
    task.to(accelerator.device).train()
    found = next((size for size in sizes if _fits(accelerator, task, hardest, size)), 0)
    for block in blocks:
        disable_activation_checkpointing(block)  # the strategy copies the task before it enables it again
    task.zero_grad(set_to_none=True)
    task.to("cpu")
    for name, buffer in task.named_buffers():
        buffer.copy_(before[name])  # undoes updates of batch-norm statistics
    gc.collect()
    torch.cuda.empty_cache()
    found = -all_reduce_max(accelerator, -found)
    if found == 0:
        total = torch.cuda.get_device_properties(accelerator.device).total_memory / 2**30
        raise UserError(
            "out-of-memory",
            f"not even one exam fits in {total:.0f} GiB of GPU memory",
            place="train.micro_batch_size",
            hint="Set distributed.activation_checkpointing=true, a smaller data.image_size, or "
            "distributed.strategy=fsdp.",
        )
    if found < share:
        print0(f"train.micro_batch_size=auto: {found} exams fit at a time; {share // found} micro-batches accumulate")
    return found


def _fits(accelerator: Accelerator, task: Any, hardest: Sample, size: int) -> bool:
    device = accelerator.device
    step_bytes = STEP_BYTES * sum(weight.numel() for weight in task.parameters() if weight.requires_grad)
    torch.cuda.reset_peak_memory_stats(device)
    batch: Batch | None = None
    with contextlib.suppress(torch.OutOfMemoryError), no_gather():  # other processes may be at another size
        batch = collate([hardest] * size).to(device)
        batch.copy_BVCHW = batch.image_BVCHW.clone() if task.compares_copies else None
        with accelerator.autocast():
            output = task(batch)
        output.objective_L.sum().backward()
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_allocated(device) + step_bytes < USABLE * total
    del batch
    gc.collect()
    torch.cuda.empty_cache()
    return False


def step_out_of_memory(batch_plan: BatchPlan, step: int) -> UserError:
    """The error of a step that did not fit; names the largest micro-batch of at most half the size that divides."""
    share = batch_plan.batch_size // batch_plan.processes
    smaller = [size for size in range(1, batch_plan.micro_batch_size // 2 + 1) if share % size == 0]
    if smaller:
        hint = (
            f"train.micro_batch_size={smaller[-1]} needs about half of it; train.batch_size stays "
            f"{batch_plan.batch_size}, by accumulation over {share // smaller[-1]} micro-batches."
        )
    else:
        hint = (
            "Set distributed.activation_checkpointing=true, a smaller data.image_size, or a strategy that shards more "
            "(distributed.strategy=zero2, zero3 or fsdp)."
        )
    return UserError(
        "out-of-memory",
        f"out of memory with micro-batches of {batch_plan.micro_batch_size} exams",
        place=f"step {step}",
        hint=hint,
    )
