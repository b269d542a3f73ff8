"""What a launcher says, held against what the recipe says: where both speak of one thing and differ, both are named."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
from accelerate.utils import parse_flag_from_env

from framework.distributed.resolve import precision_of, strategy_of
from framework.recipe import Recipe

# Of accelerate launch, what no recipe can ask for.
NOT_OFFERED = {
    "ACCELERATE_DYNAMO_BACKEND": "torch.compile",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or sequence parallelism",
}


def launcher_conflicts(recipe: Recipe) -> Iterator[str]:
    """One line for each. Whatever the launcher says of processes, machines and ports is its own to say."""
    yield from _of_arithmetic(recipe)
    launched = _strategy_launched()
    if launched and launched != strategy_of(recipe):
        yield (
            f"The launcher asks for {launched}, but distributed.strategy is '{recipe.distributed.strategy}'. "
            f"Leave the flag out, or set distributed.strategy={launched}."
        )
    if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in os.environ:
        yield (
            f"The launcher names a DeepSpeed file ({os.environ['ACCELERATE_DEEPSPEED_CONFIG_FILE']}); name it in the "
            "recipe, as distributed.deepspeed_config."
        )
    if launched.startswith("zero"):
        yield from _of_deepspeed(recipe)
    if launched == "fsdp":
        yield from _of_fsdp(recipe)
    for name, what in NOT_OFFERED.items():
        value = os.environ.get(name, "no")
        if value.lower() not in ("no", "false"):
            yield f"The launcher asks for {what} ({name}={value}), which Sonoscribe does not offer. Leave it out."
    asked_for = _processes_asked_for()
    if asked_for > 1 and "WORLD_SIZE" not in os.environ:
        yield (
            f"accelerate launch was asked for {asked_for} processes and started one: without GPUs it needs --multi_gpu "
            f"as well. Or: torchrun --nproc_per_node {asked_for} launch.py ..."
        )


def _of_arithmetic(recipe: Recipe) -> Iterator[str]:
    train = recipe.train
    # accelerate launch exports some flags only beside others, and a precision also where nobody asked for one.
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    accumulation = accumulation or _flag_of_launcher("gradient_accumulation_steps") or "1"
    if accumulation != "1":
        yield (
            f"The launcher sets gradient_accumulation_steps={accumulation}, but accumulation follows from the recipe: "
            f"train.batch_size {train.batch_size}, train.micro_batch_size {train.micro_batch_size}. "
            "Leave the flag out and set train.micro_batch_size."
        )
    exported, typed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), _flag_of_launcher("mixed_precision")
    precision = typed or (exported if exported != "no" else "")
    if precision and {"no": "fp32"}.get(precision, precision) != precision_of(recipe):
        yield (
            f"The launcher sets mixed_precision={precision}, but train.precision is '{train.precision}', here "
            f"{precision_of(recipe)}. Leave the flag out, or set train.precision={precision}."
        )


def _strategy_launched() -> str:
    """What accelerate launch was asked for by its flags; empty where by none."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    return "fsdp" if parse_flag_from_env("ACCELERATE_USE_FSDP") else ""


def _of_deepspeed(recipe: Recipe) -> Iterator[str]:
    clip, asked = os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "none"), recipe.distributed.offload
    if clip != "none" and float(clip) != recipe.train.max_grad_norm:
        yield (
            f"The launcher sets gradient_clipping={clip}, but train.max_grad_norm is {recipe.train.max_grad_norm}. "
            "Leave the flag out."
        )
    offloads = (
        os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") != "none",
        os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none") != "none",
    )
    if any(offloads) and offloads != (asked != "none", asked == "all"):
        wanted = "all" if offloads[1] else "optimizer"
        yield (
            f"The launcher asks for offload ({wanted}), but distributed.offload is '{asked}'. "
            f"Leave the flag out, or set distributed.offload={wanted}."
        )


def _of_fsdp(recipe: Recipe) -> Iterator[str]:
    asked = recipe.distributed
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS") and asked.offload != "all":
        yield (
            f"The launcher sets fsdp_offload_params, but distributed.offload is '{asked.offload}'. "
            "Leave the flag out, or set distributed.offload=all."
        )
    if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING") and not asked.activation_checkpointing:
        yield (
            "The launcher sets fsdp_activation_checkpointing, but distributed.activation_checkpointing is false. "
            "Leave the flag out, or set it to true in the recipe."
        )


def _processes_asked_for() -> int:
    """What `accelerate launch --num_processes` was given, where that is our parent; else 1."""
    number = _flag_of_launcher("num_processes")
    return int(number) if number.isdecimal() else 1


def threads_asked_for() -> bool:
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
