"""DeepSpeed's configuration: the values of the recipe, merged with the user's own JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from framework.data.loading import BatchPlan
from framework.distributed.resolve import precision_of, strategy_of
from framework.recipe import Recipe
from framework.runtime.errors import Problem, UserError
from framework.runtime.files import read_bounded

KEY = "distributed.deepspeed_config"
# Sections of DeepSpeed's file, and the recipe's key for the same thing.
RECIPE_KEYS = {
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "amp": "train.precision",
    "activation_checkpointing": "distributed.activation_checkpointing",
    "data_types": "train.precision",
    "communication_data_type": "train.precision",
    "tensorboard": "none, TensorBoard is always written",
}


def deepspeed_config(recipe: Recipe, batch_plan: BatchPlan) -> dict[str, Any]:
    """Returns the full configuration, without `auto` values.

    bf16 is autocast over fp32 weights, as under every other strategy, so that strategies give the same losses.

    Raises:
        UserError: the file cannot be read, has `auto` values, or differs from the recipe.
    """
    config: dict[str, Any] = {
        "train_batch_size": batch_plan.batch_size,
        "train_micro_batch_size_per_gpu": batch_plan.micro_batch_size,
        "gradient_accumulation_steps": batch_plan.accumulation,
        "gradient_clipping": recipe.train.max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,  # DeepSpeed knows few by name; every element-wise optimizer works
        "zero_force_ds_cpu_optimizer": False,  # the recipe's optimizer also runs on offloaded state
        # No module communicates in bf16: the other strategies communicate in fp32.
        "torch_autocast": {
            "enabled": precision_of(recipe) == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        # Clipping and the check for non-finite gradients need the norm.
        "zero_optimization": {"stage": int(strategy_of(recipe).removeprefix("zero")), "compute_grad_norm": True},
    }
    offload = recipe.distributed.offload
    if offload != "none":
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if offload == "all":
        config["zero_optimization"]["offload_param"] = {"device": "cpu"}
    if recipe.distributed.deepspeed_config is None:
        return config
    path = Path(recipe.distributed.deepspeed_config)
    file = _read(path)
    problems = [
        Problem("unknown-key", f"'{key}' belongs in the recipe", place=str(path), hint=f"Its recipe key: {home}.")
        for key, home in RECIPE_KEYS.items()
        if key in file
    ]
    problems += [
        Problem("out-of-range", f"{key} is 'auto'", place=str(path), hint="Remove the key, or give a value.")
        for key in _auto_keys(file)
    ]
    problems += _offload_conflicts(file.get("zero_optimization"), config["zero_optimization"], offload, path)
    merged = _merge(file, config, "", problems, path)
    if problems:
        raise UserError.of(problems)
    return merged


def _offload_conflicts(file: Any, config: dict[str, Any], offload: str, path: Path) -> Iterator[Problem]:
    """Sections of the file that offload tensors to another device than the recipe."""
    for name in ("offload_optimizer", "offload_param"):
        section = file.get(name) if isinstance(file, dict) else None
        device = section.get("device", "none") if isinstance(section, dict) else "none"
        if device != config.get(name, {}).get("device", "none") and section is not None:
            yield Problem(
                "conflicting-settings",
                f"zero_optimization.{name}.device is {device!r}, but distributed.offload is '{offload}'",
                place=str(path),
                hint="Set distributed.offload in the recipe.",
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bounded(path))
    except FileNotFoundError:
        raise UserError("no-such-file", f"no such file: {path}", place=KEY) from None
    except UserError as error:
        raise UserError("unreadable-file", str(error.problems[0].message), place=KEY) from None
    except (ValueError, RecursionError) as error:
        raise UserError("wrong-format", f"{path} is not JSON ({error})", place=KEY) from None
    if not isinstance(content, dict):
        raise UserError(
            "wrong-format", f"{path} contains a {type(content).__name__}", place=KEY, expected="an object {...}"
        )
    return content


def _auto_keys(tree: Any, key: str = "") -> list[str]:
    if isinstance(tree, dict):
        return [found for name, value in tree.items() for found in _auto_keys(value, f"{key}.{name}" if key else name)]
    if isinstance(tree, list):
        return [found for number, value in enumerate(tree) for found in _auto_keys(value, f"{key}.{number}")]
    return [key] if tree == "auto" else []


def _merge(
    file: dict[str, Any], config: dict[str, Any], prefix: str, problems: list[Problem], path: Path
) -> dict[str, Any]:
    merged = dict(file)
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            section = file.get(name, {})
            if not isinstance(section, dict):
                problems.append(
                    Problem("wrong-type", f"{key} is {section!r}", place=str(path), expected="an object {...}")
                )
                continue
            merged[name] = _merge(section, value, f"{key}.", problems, path)
        elif name in file and file[name] not in (value, "auto"):
            problems.append(
                Problem(
                    "conflicting-settings",
                    f"{key} is {file[name]!r}, but the recipe sets {value!r}",
                    place=str(path),
                    hint="Remove the key from the file.",
                )
            )
        else:
            merged[name] = value
    return merged
