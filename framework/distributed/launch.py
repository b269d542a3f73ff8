"""What the launcher says, held against what the recipe says, and the Accelerator that follows from both."""

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

from framework.image_cache import usable_cores
from framework.recipe import Recipe, RecipeError

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
    problems = [*_contradictions(recipe), *_impossible(recipe, training)]
    if problems:
        raise RecipeError(*problems)
    cpu = on_cpu()
    if cpu and "ACCELERATE_MIXED_PRECISION" in os.environ and not _threads_asked_for():
        # Only `accelerate launch` exports that. It grants one thread unless told otherwise, which leaves cores idle.
        torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    for name in LAUNCHER_ONLY:
        os.environ.pop(name, None)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    timeout = timedelta(minutes=recipe.distributed.timeout)
    handlers: list[Any] = [DistributedDataParallelKwargs(broadcast_buffers=False)]  # the strategy shares them
    if several:
        # On a CPU accelerate must be told of gloo, or it may believe in one process; a single process must not be told.
        handlers.append(InitProcessGroupKwargs(backend="gloo" if cpu else "nccl", timeout=timeout))
        if cpu:
            os.environ["ACCELERATE_USE_CPU"] = "true"
    if several and restarts():
        # The launcher keeps one store for all attempts, and in it stand the addresses of processes that are gone.
        store, rank, processes = next(rendezvous("env://", timeout=timeout))
        fresh = dist.PrefixStore(f"attempt/{restarts()}", store)
        backend = "gloo" if cpu else "nccl"
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=processes, timeout=timeout)
    precision = precision_of(recipe)
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=handlers)
    if training and strategy_of(recipe) != "ddp" and not dist.is_initialized():
        # DeepSpeed and FSDP ask for a group, also of one, and DeepSpeed for what a launcher would have set.
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group("gloo" if cpu else "nccl", store=dist.HashStore(), rank=0, world_size=1)
    return accelerator


def on_cpu() -> bool:
    return not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def precision_of(recipe: Recipe) -> str:
    """fp32, bf16 or fp16. `auto` is settled by the machine: bf16 on a GPU that has it, else fp32."""
    if recipe.train.precision != "auto":
        return recipe.train.precision
    return "bf16" if not on_cpu() and torch.cuda.is_bf16_supported() else "fp32"


def strategy_of(recipe: Recipe) -> str:
    """ddp, zero1, zero2, zero3 or fsdp."""
    asked = recipe.distributed.strategy
    return "ddp" if asked == "auto" else asked


def _contradictions(recipe: Recipe) -> Iterator[str]:
    """Where the launcher sets what the recipe owns, to another value; both are named."""
    told, train = os.environ, recipe.train
    strategy = strategy_of(recipe)
    accumulation = told.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        yield (
            f"The launcher sets gradient_accumulation_steps={accumulation}, but accumulation follows from the recipe: "
            f"train.batch_size {train.batch_size}, train.micro_batch {train.micro_batch}. "
            "Leave the flag out and set train.micro_batch."
        )
    precision = told.get("ACCELERATE_MIXED_PRECISION", "no")  # exported also where nobody asked for one
    if precision not in ("no", precision_of(recipe)):
        yield (
            f"The launcher sets mixed_precision={precision}, but train.precision is '{train.precision}', here "
            f"{precision_of(recipe)}. Leave the flag out, or set train.precision={precision}."
        )
    launched = None
    if told.get("ACCELERATE_USE_DEEPSPEED") == "true":
        launched = f"zero{told.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    elif told.get("ACCELERATE_USE_FSDP") == "true":
        launched = "fsdp"
    if launched and launched != strategy:
        yield (
            f"The launcher asks for {launched}, but distributed.strategy is '{recipe.distributed.strategy}'. "
            f"Leave the flag out, or set distributed.strategy={launched}."
        )
    if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in told:
        yield (
            f"The launcher names a DeepSpeed file ({told['ACCELERATE_DEEPSPEED_CONFIG_FILE']}); name it in the recipe, "
            "as distributed.deepspeed_config."
        )
    if launched and launched.startswith("zero"):
        clip = told.get("ACCELERATE_GRADIENT_CLIPPING", "none")
        if clip != "none" and float(clip) != train.clip:
            yield f"The launcher sets gradient_clipping={clip}, but train.clip is {train.clip}. Leave the flag out."
        offloads = (
            told.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") != "none",
            told.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none") != "none",
        )
        asked = recipe.distributed.offload
        if any(offloads) and offloads != (asked != "none", asked == "all"):
            wanted = "all" if offloads[1] else "optimizer"
            yield (
                f"The launcher asks for offload ({wanted}), but distributed.offload is '{asked}'. "
                f"Leave the flag out, or set distributed.offload={wanted}."
            )
    if launched == "fsdp":
        if told.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true" and recipe.distributed.offload != "all":
            yield (
                f"The launcher sets fsdp_offload_params, but distributed.offload is '{recipe.distributed.offload}'. "
                "Leave the flag out, or set distributed.offload=all."
            )
        again = recipe.distributed.activation_checkpointing
        if told.get("FSDP_ACTIVATION_CHECKPOINTING", "").lower() == "true" and not again:
            yield (
                "The launcher sets fsdp_activation_checkpointing, but distributed.activation_checkpointing is false. "
                "Leave the flag out, or set it to true in the recipe."
            )
    for name, what in (
        ("ACCELERATE_DYNAMO_BACKEND", "torch.compile"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "tensor or sequence parallelism"),
    ):
        if told.get(name, "no").lower() not in ("no", "false"):
            yield f"The launcher asks for {what} ({name}={told[name]}), which Sonoscribe does not offer. Leave it out."
    asked_for = _processes_asked_for()
    if asked_for > 1 and "WORLD_SIZE" not in told:
        yield (
            f"accelerate launch was asked for {asked_for} processes and started one: without GPUs it needs --multi_gpu "
            f"as well. Or: torchrun --nproc_per_node {asked_for} launch.py ..."
        )


def _processes_asked_for() -> int:
    """What `accelerate launch --num_processes` was given, where that is our parent; else 1."""
    number = _flag_of_launcher("num_processes")
    return int(number) if number.isdecimal() else 1


def _threads_asked_for() -> bool:
    """Whether the user chose a number of threads, to the launcher or in the shell that it was typed in."""
    try:
        exported = "OMP_NUM_THREADS" in psutil.Process(os.getppid()).environ()
    except psutil.Error:
        exported = False
    return exported or bool(_flag_of_launcher("num_cpu_threads_per_process"))


def _flag_of_launcher(name: str) -> str:
    """The value of a flag of `accelerate launch`, where that is our parent and the flag is there; else nothing."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return ""
    if not any("accelerate" in word for word in words[:3]):
        return ""
    found = ""
    for word, after in zip(words, [*words[1:], ""]):
        flag, _, value = word.partition("=")
        if flag.lstrip("-").replace("-", "_") == name:
            found = value or after  # the last counts
    return found


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
    if named != "none":
        return named
    parent = psutil.Process(os.getppid())
    return f"{socket.gethostname()}:{parent.pid}:{parent.create_time():.0f}"


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
        "machines": int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        "strategy": strategy_of(recipe) if processes > 1 or strategy_of(recipe) != "ddp" else "one process",
        "precision": {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
        "clip": recipe.train.clip,
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
