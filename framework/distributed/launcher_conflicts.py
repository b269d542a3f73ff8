"""Compares what the launcher sets with the recipe: a setting of both that differs is refused, with both values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
from accelerate.utils import parse_flag_from_env

from framework.distributed.resolve import precision_of, strategy_of
from framework.recipe import Recipe
from framework.runtime.errors import Problem
from framework.runtime.processes import TASK_COUNTS

# Settings of accelerate launch that no recipe has.
UNSUPPORTED = {
    "ACCELERATE_DYNAMO_BACKEND": "torch.compile",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or sequence parallelism",
}


def launcher_conflicts(recipe: Recipe) -> Iterator[Problem]:
    """Yields one problem per conflict. Processes, machines and ports belong to the launcher and are not compared."""
    yield from _without_launcher()
    yield from _arithmetic(recipe)
    strategy = _launched_strategy()
    if strategy and strategy != strategy_of(recipe):
        yield _conflict(f"strategy {strategy}", "distributed.strategy", recipe.distributed.strategy, strategy)
    if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in os.environ:
        yield Problem(
            "conflicting-settings",
            f"the launcher names a DeepSpeed file ({os.environ['ACCELERATE_DEEPSPEED_CONFIG_FILE']})",
            place="distributed.deepspeed_config",
            hint="Name the file in the recipe instead, as distributed.deepspeed_config.",
        )
    if strategy.startswith("zero"):
        yield from _deepspeed_flags(recipe)
    if strategy == "fsdp":
        yield from _fsdp_flags(recipe)
    for name, feature in UNSUPPORTED.items():
        value = os.environ.get(name, "no")
        if value.lower() not in ("no", "false"):
            yield Problem(
                "unsupported",
                f"the launcher asks for {feature} ({name}={value}), which Sonoscribe does not support",
                place="launcher",
                hint=f"Remove it from {file}." if (file := _config_file()) else "Remove the flag.",
            )
    processes = _launcher_flag("num_processes")
    if processes.isdecimal() and int(processes) > 1 and "WORLD_SIZE" not in os.environ:
        yield Problem(
            "ignored-setting",
            f"accelerate launch was asked for {processes} processes and started one",
            place="launcher",
            hint=f"Without GPUs it needs --multi_gpu as well. Or: launch.py launch --num_processes {processes} ...",
        )


def _without_launcher() -> Iterator[Problem]:
    """Copies of the command that srun, mpirun and the like start, none of which knows of the others."""
    if "WORLD_SIZE" in os.environ:  # a launcher connects the processes
        return
    counts = {name: os.environ.get(name, "") for name in TASK_COUNTS}
    if counts["SLURM_STEP_NUM_TASKS"]:
        counts["SLURM_NTASKS"] = ""  # of the job, of which this step may be one task
    for name, count in counts.items():
        if count.isdecimal() and int(count) > 1:
            yield Problem(
                "conflicting-settings",
                f"{name}={count} starts {count} processes, and no launcher connects them: each would train alone",
                place="launcher",
                hint=f"Use `torchrun --nproc_per_node {count} launch.py ...`, or `accelerate launch` with one task per "
                f"machine (docs/launch/slurm.sbatch). For a single process: `env -u {name} python launch.py ...`.",
            )
            return


def _conflict(launcher: str, key: str, value: object, fix: object = None) -> Problem:
    """A setting of the launcher that differs from the value of `key`; `fix` is a value of `key` that agrees with it."""
    file = _config_file()
    source = f" (by a flag, or its configuration file {file})" if file else ""
    remove = f"Remove it from {file} or the command line" if file else "Remove the launcher's flag"
    return Problem(
        "conflicting-settings",
        f"the launcher sets {launcher}{source}, but the recipe has {value}",
        place=key,
        hint=remove + ("." if fix is None else f", or set {key}={fix}."),
    )


def _arithmetic(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    # accelerate launch exports some flags only together with others, and a precision even if none was asked for.
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    accumulation = accumulation or _launcher_flag("gradient_accumulation_steps") or "1"
    if accumulation != "1":
        yield Problem(
            "conflicting-settings",
            f"the launcher sets gradient_accumulation_steps={accumulation}, but accumulation follows from "
            f"train.batch_size={train.batch_size} and train.micro_batch_size={train.micro_batch_size}",
            place="train.micro_batch_size",
            hint="Remove the launcher's flag and set train.micro_batch_size.",
        )
    exported, typed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), _launcher_flag("mixed_precision")
    precision = typed or (exported if exported != "no" else "")
    precision = {"no": "fp32"}.get(precision, precision)
    if precision and precision != precision_of(recipe):
        asked = f"{train.precision} ({precision_of(recipe)} on this machine)"
        yield _conflict(f"precision {precision}", "train.precision", asked, precision)


def _launched_strategy() -> str:
    """The strategy that flags of accelerate launch ask for; empty if they ask for none."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    return "fsdp" if parse_flag_from_env("ACCELERATE_USE_FSDP") else ""


def _deepspeed_flags(recipe: Recipe) -> Iterator[Problem]:
    clip, offload = os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "none"), recipe.distributed.offload
    if clip != "none" and float(clip) != recipe.train.max_grad_norm:
        yield _conflict(f"gradient_clipping={clip}", "train.max_grad_norm", recipe.train.max_grad_norm)
    launched = (
        os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") != "none",
        os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none") != "none",
    )
    if any(launched) and launched != (offload != "none", offload == "all"):
        wanted = "all" if launched[1] else "optimizer"
        yield _conflict(f"offload of {wanted}", "distributed.offload", offload, wanted)


def _fsdp_flags(recipe: Recipe) -> Iterator[Problem]:
    settings = recipe.distributed
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS") and settings.offload != "all":
        yield _conflict("fsdp_offload_params", "distributed.offload", settings.offload, "all")
    if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING") and not settings.activation_checkpointing:
        yield _conflict("fsdp_activation_checkpointing", "distributed.activation_checkpointing", "false", "true")


def launcher_sets_threads() -> bool:
    """Whether the user chose a number of threads, by a flag of the launcher or in the shell that started it."""
    try:
        exported = "OMP_NUM_THREADS" in psutil.Process(os.getppid()).environ()
    except psutil.Error:
        exported = False
    return exported or bool(_launcher_flag("num_cpu_threads_per_process"))


def _config_file() -> str:
    """The configuration file that `accelerate launch` has read, if that is the parent process; else empty."""
    if not _launcher_words():
        return ""
    from accelerate.commands.config import default_config_file

    return _launcher_flag("config_file") or (default_config_file if Path(default_config_file).is_file() else "")


def _launcher_words() -> list[str]:
    """The command line of `accelerate launch` or of the verb `launch`, if that is the parent process."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    return words if any("accelerate" in word or word == "launch" for word in words[:4]) else []


def _launcher_flag(name: str) -> str:
    """The value of a flag on the command line of `accelerate launch`, if that is the parent process; else empty."""
    words, found = _launcher_words(), ""
    for word, after in zip(words, [*words[1:], ""]):
        flag, _, value = word.partition("=")
        if flag.lstrip("-").replace("-", "_") == name:
            found = value or after  # the last one counts
    return found
