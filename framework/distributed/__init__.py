"""The one place that configures Accelerate, DeepSpeed and FSDP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch import nn

from framework.data.loading import BatchPlan
from framework.distributed.collectives import all_reduce_max, broadcast, gather, in_turns, on_main
from framework.distributed.launch import describe_launch, launch_id, restarts, start_accelerator
from framework.distributed.resolve import precision_of, strategy_of
from framework.distributed.strategy import Strategy
from framework.recipe import Recipe
from framework.task import ReportTask

__all__ = [
    "Strategy",
    "all_reduce_max",
    "broadcast",
    "describe_launch",
    "gather",
    "in_turns",
    "launch_id",
    "on_main",
    "precision_of",
    "prepare",
    "restarts",
    "start_accelerator",
    "strategy_of",
]


def prepare(
    accelerator: Accelerator,
    recipe: Recipe,
    task: ReportTask,
    batch_plan: BatchPlan,
    build_optimizer: Callable[[nn.Module], Any],
) -> Strategy:
    """The task over all processes, by the recipe's strategy, ready to train."""
    name = strategy_of(recipe)
    if name == "fsdp":
        from framework.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(accelerator, recipe, task, build_optimizer)
    if name.startswith("zero"):
        from framework.distributed.zero import Zero

        return Zero(accelerator, recipe, task, build_optimizer, batch_plan)
    from framework.distributed.ddp import DataParallel

    return DataParallel(accelerator, recipe, task, build_optimizer)
