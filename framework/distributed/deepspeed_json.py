"""DeepSpeed's configuration: what the recipe says, over what a JSON file of one's own adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from framework.data.loading import BatchPlan
from framework.distributed.resolve import precision_of, strategy_of
from framework.recipe import Recipe, RecipeError

# Sections that would set what has a place of its own in a recipe.
ELSEWHERE = {
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "amp": "train.precision",
    "activation_checkpointing": "distributed.activation_checkpointing",
    "data_types": "train.precision",
    "communication_data_type": "train.precision",
    "tensorboard": "nothing: TensorBoard is always written",
}


def deepspeed_config(recipe: Recipe, batch_plan: BatchPlan) -> dict[str, Any]:
    """The whole configuration, without a value left for DeepSpeed to guess.

    bf16 is autocast over weights in fp32, as under every other strategy, so that strategies give the same losses.

    Raises:
        RecipeError: the file cannot be read, says `auto`, or says something else than the recipe.
    """
    ours: dict[str, Any] = {
        "train_batch_size": batch_plan.batch_size,
        "train_micro_batch_size_per_gpu": batch_plan.micro_batch_size,
        "gradient_accumulation_steps": batch_plan.accumulation,
        "gradient_clipping": recipe.train.max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,  # any that works element by element; DeepSpeed knows few by name
        "zero_force_ds_cpu_optimizer": False,  # the recipe's own, also where its state waits on the host
        # Of the modules that could be exchanged in bf16, none is: the other strategies exchange fp32.
        "torch_autocast": {
            "enabled": precision_of(recipe) == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        # Clipping and the check for gradients that are no number need the norm.
        "zero_optimization": {"stage": int(strategy_of(recipe).removeprefix("zero")), "compute_grad_norm": True},
    }
    offload = recipe.distributed.offload
    if offload != "none":
        ours["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if offload == "all":
        ours["zero_optimization"]["offload_param"] = {"device": "cpu"}
    if recipe.distributed.deepspeed_config is None:
        return ours
    path = Path(recipe.distributed.deepspeed_config)
    theirs = _read(path)
    problems = [f"{path}: '{key}' belongs in the recipe: {home}" for key, home in ELSEWHERE.items() if key in theirs]
    problems += [f"{path}: {key} is 'auto'; leave it out, or give a value" for key in _autos(theirs)]
    problems += _offload(theirs.get("zero_optimization"), ours["zero_optimization"], offload, path)
    merged = _merge(theirs, ours, "", problems, str(path))
    if problems:
        raise RecipeError(*problems)
    return merged


def _offload(theirs: Any, ours: dict[str, Any], asked: str, path: Path) -> list[str]:
    """Where the file moves tensors to another place than the recipe does."""
    problems = []
    for name in ("offload_optimizer", "offload_param"):
        found = theirs.get(name) if isinstance(theirs, dict) else None
        device = found.get("device", "none") if isinstance(found, dict) else "none"
        if device != ours.get(name, {}).get("device", "none") and found is not None:
            problems.append(
                f"{path}: zero_optimization.{name}.device is {device!r}, but distributed.offload is '{asked}'; "
                "set it in the recipe"
            )
    return problems


def _read(path: Path) -> dict[str, Any]:
    where = f"distributed.deepspeed_config: {path}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{where}: no such file") from None
    except (ValueError, OSError) as error:
        raise RecipeError(f"{where}: cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise RecipeError(f"{where}: found {type(found).__name__}, expected an object {{...}}")
    return found


def _autos(tree: Any, key: str = "") -> list[str]:
    if isinstance(tree, dict):
        return [found for name, value in tree.items() for found in _autos(value, f"{key}.{name}" if key else name)]
    if isinstance(tree, list):
        return [found for number, value in enumerate(tree) for found in _autos(value, f"{key}.{number}")]
    return [key] if tree == "auto" else []


def _merge(theirs: dict[str, Any], ours: dict[str, Any], above: str, problems: list[str], path: str) -> dict[str, Any]:
    merged = dict(theirs)
    for name, value in ours.items():
        key = f"{above}{name}"
        if isinstance(value, dict):
            inside = theirs.get(name, {})
            if not isinstance(inside, dict):
                problems.append(f"{path}: {key}: found {inside!r}, expected an object {{...}}")
                continue
            merged[name] = _merge(inside, value, f"{key}.", problems, path)
        elif name in theirs and theirs[name] not in (value, "auto"):
            problems.append(
                f"{path}: {key} is {theirs[name]!r}, but the recipe makes it {value!r}; leave it out of the file"
            )
        else:
            merged[name] = value
    return merged
