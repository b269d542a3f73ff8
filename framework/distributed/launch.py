"""Starts the Accelerator that launcher and recipe ask for, and describes it."""

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
from accelerate import Accelerator, InitProcessGroupKwargs
from torch.distributed.rendezvous import rendezvous

from framework.distributed.launcher_conflicts import launcher_conflicts, launcher_sets_threads
from framework.distributed.resolve import precision_of, strategy_of
from framework.models.device import on_cpu
from framework.recipe import Recipe, RecipeError
from framework.runtime.errors import Problem
from framework.runtime.processes import usable_cores

# Variables of `accelerate launch` for settings that the recipe owns. They are compared with the recipe, then removed.
LAUNCHER_ONLY = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
)


def start_accelerator(recipe: Recipe, *, training: bool = True) -> Accelerator:
    """Returns an Accelerator for the recipe's precision and strategy on the launcher's processes.

    Args:
        training: False for commands that need full weights on each process and no strategy.

    Raises:
        RecipeError: a setting of the launcher differs from the recipe, or this machine cannot run the recipe.
    """
    problems = [*launcher_conflicts(recipe), *_unsupported(recipe, training)]
    if problems:
        raise RecipeError.of(problems)
    cpu = on_cpu()
    if cpu and "ACCELERATE_MIXED_PRECISION" in os.environ and not launcher_sets_threads():
        # Only `accelerate launch` exports this variable. Its default of one thread leaves cores idle.
        torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    for name in LAUNCHER_ONLY:
        os.environ.pop(name, None)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_host = (
        strategy_of(recipe) == "fsdp" and recipe.distributed.offload == "all"
    )  # gradient norms are then reduced on the host
    backend = "gloo" if cpu else "cuda:nccl,cpu:gloo" if on_host else "nccl"
    timeout = timedelta(minutes=recipe.distributed.timeout)
    handlers: list[Any] = []
    if several:
        # On a CPU accelerate needs the backend, or it may assume one process; it refuses a backend for one process.
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=timeout))
        if cpu:
            os.environ["ACCELERATE_USE_CPU"] = "true"
    if several and restarts():
        # The launcher keeps one store for all attempts, which holds the addresses of processes that have ended.
        store, rank, processes = next(rendezvous("env://", timeout=timeout))
        fresh = dist.PrefixStore(f"attempt/{restarts()}", store)
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=processes, timeout=timeout)
    if not cpu:
        torch.backends.cuda.matmul.allow_tf32 = recipe.train.tf32
    precision = precision_of(recipe)
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=handlers)
    if training and strategy_of(recipe) != "ddp" and not dist.is_initialized():
        # DeepSpeed and FSDP need a process group, even of one process.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return accelerator


def _unsupported(recipe: Recipe, training: bool) -> Iterator[Problem]:
    """Settings that this machine cannot run. They are refused, never replaced."""
    strategy = strategy_of(recipe)
    if precision_of(recipe) == "fp16" and on_cpu():
        yield Problem("needs-gpu", "fp16 needs a GPU", place="train.precision", expected="auto, fp32 or bf16")
    if not training:
        return
    if on_cpu() and recipe.train.compile == "reduce-overhead":
        found = "'reduce-overhead' uses CUDA graphs, and this run has no GPU"
        yield Problem("needs-gpu", found, place="train.compile", expected="true or false")
    if on_cpu() and recipe.train.tf32:
        yield Problem("needs-gpu", "TF32 needs a GPU", place="train.tf32", expected="false")
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        yield Problem(
            "missing-package",
            f"{strategy} needs the package deepspeed, which is not installed",
            place="distributed.strategy",
            hint="pip install 'sonoscribe[deepspeed]', or set distributed.strategy=fsdp, which needs only torch.",
        )
    if recipe.distributed.offload != "none" and on_cpu():
        yield Problem(
            "needs-gpu",
            f"'{recipe.distributed.offload}' moves tensors from a GPU to host memory, and this run has no GPU",
            place="distributed.offload",
            expected="none",
        )


def launch_id() -> str:
    """Identifies the launch; restarts by the same launcher have the same id."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    place = f"{os.environ.get('MASTER_ADDR', socket.gethostname())}:{os.environ.get('MASTER_PORT', '')}"
    try:
        parent = psutil.Process(os.getppid())
        return f"{name}@{place} {parent.pid} {parent.create_time():.0f}"
    except psutil.Error:  # in a container there may be none
        return f"{name}@{place}"


def restarts() -> int:
    """How often the launcher has restarted the processes of this launch."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def describe_launch(accelerator: Accelerator, recipe: Recipe) -> dict[str, Any]:
    """Returns the effective settings, which are printed once and stored with the run."""
    device, settings = accelerator.device, recipe.distributed
    processes = accelerator.num_processes
    described = {
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
    if settings.offload != "none":
        described["offload"] = settings.offload
    if settings.activation_checkpointing:
        described["activation_checkpointing"] = True
    if settings.deepspeed_config:
        described["deepspeed_config"] = settings.deepspeed_config
    if processes > 1:
        described["timeout_minutes"] = settings.timeout
    return described
