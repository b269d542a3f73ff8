"""Wraps the task in the recipe's strategy. Each strategy is imported only when a recipe names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch import nn

from framework.data.loading import BatchPlan
from framework.distributed.resolve import strategy_of
from framework.distributed.strategy import Strategy
from framework.recipe import Recipe
from framework.task import ReportTask


def prepare(
    accelerator: Accelerator,
    recipe: Recipe,
    task: ReportTask,
    batch_plan: BatchPlan,
    build_optimizer: Callable[[nn.Module], Any],
) -> Strategy:
    """Returns the task under the recipe's strategy, ready to train."""
    name = strategy_of(recipe)
    if name == "fsdp":
        from framework.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(accelerator, recipe, task, build_optimizer)
    if name.startswith("zero"):
        from framework.distributed.zero import Zero

        return Zero(accelerator, recipe, task, build_optimizer, batch_plan)
    from framework.distributed.ddp import DataParallel

    return DataParallel(accelerator, recipe, task, build_optimizer)
