"""The Accelerator that follows from what the launcher says and what the recipe says, and what it comes to."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch.distributed.rendezvous import rendezvous

from framework.distributed.launcher_conflicts import launcher_conflicts, threads_asked_for
from framework.distributed.resolve import precision_of, strategy_of
from framework.models.device import on_cpu
from framework.recipe import Recipe, RecipeError
from framework.runtime.processes import usable_cores

# What `accelerate launch` exports of things that the recipe owns. They are held against it, and then have no say.
LAUNCHER_ONLY = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
)


def start_accelerator(recipe: Recipe, *, training: bool = True) -> Accelerator:
    """An Accelerator for the recipe's precision and strategy on the launcher's processes.

    Args:
        training: False for what needs whole weights on each process and no strategy.

    Raises:
        RecipeError: the launcher sets what the recipe owns to something else, or this machine cannot do what the
            recipe asks for.
    """
    problems = [*launcher_conflicts(recipe), *_impossible(recipe, training)]
    if problems:
        raise RecipeError(*problems)
    cpu = on_cpu()
    if cpu and "ACCELERATE_MIXED_PRECISION" in os.environ and not threads_asked_for():
        # Only `accelerate launch` exports that. It grants one thread unless told otherwise, which leaves cores idle.
        torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    for name in LAUNCHER_ONLY:
        os.environ.pop(name, None)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    both = strategy_of(recipe) == "fsdp" and recipe.distributed.offload == "all"  # clipping then adds up on the host
    backend = "gloo" if cpu else "cuda:nccl,cpu:gloo" if both else "nccl"
    timeout = timedelta(minutes=recipe.distributed.timeout)
    handlers: list[Any] = [DistributedDataParallelKwargs(broadcast_buffers=False)]  # the strategy shares them
    if several:
        # On a CPU accelerate must be told of gloo, or it may believe in one process; a single process must not be told.
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=timeout))
        if cpu:
            os.environ["ACCELERATE_USE_CPU"] = "true"
    if several and restarts():
        # The launcher keeps one store for all attempts, and in it stand the addresses of processes that are gone.
        store, rank, processes = next(rendezvous("env://", timeout=timeout))
        fresh = dist.PrefixStore(f"attempt/{restarts()}", store)
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=processes, timeout=timeout)
    precision = precision_of(recipe)
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=handlers)
    if training and strategy_of(recipe) != "ddp" and not dist.is_initialized():
        # DeepSpeed and FSDP ask for a group, also of one.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return accelerator


def _impossible(recipe: Recipe, training: bool) -> Iterator[str]:
    """What this machine cannot do. It is refused, and nothing else done in its place."""
    strategy = strategy_of(recipe)
    if precision_of(recipe) == "fp16" and on_cpu():
        yield "train.precision: fp16 needs a GPU; expected auto, fp32 or bf16 on this machine"
    if not training:
        return
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        yield (
            f"distributed.strategy: {strategy} needs the package deepspeed, which is not installed: "
            "pip install 'sonoscribe[deepspeed]'; or take fsdp, which needs no more than torch"
        )
    if recipe.distributed.offload != "none" and on_cpu():
        yield (
            f"distributed.offload: '{recipe.distributed.offload}' moves tensors from a GPU to its host, and this run "
            "has no GPU; expected none"
        )


def launch_id() -> str:
    """The same for all attempts of one launch: a launcher that restarts its processes stays itself."""
    named = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    place = f"{os.environ.get('MASTER_ADDR', socket.gethostname())}:{os.environ.get('MASTER_PORT', '')}"
    try:
        parent = psutil.Process(os.getppid())
        return f"{named}@{place} {parent.pid} {parent.create_time():.0f}"
    except psutil.Error:  # in a container there may be none
        return f"{named}@{place}"


def restarts() -> int:
    """How often the launcher has started the processes of this launch anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def describe_launch(accelerator: Accelerator, recipe: Recipe) -> dict[str, Any]:
    """The effective settings, which are printed once and stored with the run."""
    device, asked = accelerator.device, recipe.distributed
    processes = accelerator.num_processes
    told = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": processes,
        "machines": int(os.environ.get("GROUP_WORLD_SIZE") or os.environ.get("CROSS_SIZE") or 1),  # torchrun, deepspeed
        "strategy": strategy_of(recipe) if processes > 1 or strategy_of(recipe) != "ddp" else "one process",
        "precision": {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
        "clip": recipe.train.max_grad_norm
        if recipe.train.clip_by == "norm"
        else f"{recipe.train.max_grad_norm} by value",
        "threads": torch.get_num_threads(),
    }
    if asked.offload != "none":
        told["offload"] = asked.offload
    if asked.activation_checkpointing:
        told["activation_checkpointing"] = True
    if asked.deepspeed_config:
        told["deepspeed_config"] = asked.deepspeed_config
    if processes > 1:
        told["timeout_minutes"] = asked.timeout
    return told
