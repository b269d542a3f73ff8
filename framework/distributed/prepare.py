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
from framework.runtime.errors import UserError
from framework.task import ReportTask


def prepare(
    accelerator: Accelerator,
    recipe: Recipe,
    task: ReportTask,
    batch_plan: BatchPlan,
    build_optimizer: Callable[[nn.Module], Any],
) -> Strategy:
    """Returns the task under the recipe's strategy, ready to train.

    Raises:
        UserError: a loss calls the decoder, of which the strategy shards the weights. `validate` finds it if the class
            of the loss says so; here its keys count as well.
    """
    name = strategy_of(recipe)
    calling = [loss for loss, module in task.losses.items() if "decoder" in getattr(module, "needs", ())]
    if calling and name in ("zero3", "fsdp"):
        raise UserError(
            "unsupported", f"calls the decoder, which needs whole weights; {name} shards them",
            place=f"losses.{calling[0]}", hint="Set distributed.strategy to ddp, zero1 or zero2.",
        )  # fmt: skip
    if name == "fsdp":
        from framework.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(accelerator, recipe, task, build_optimizer)
    if name.startswith("zero"):
        from framework.distributed.zero import Zero

        return Zero(accelerator, recipe, task, build_optimizer, batch_plan)
    from framework.distributed.ddp import DataParallel

    return DataParallel(accelerator, recipe, task, build_optimizer)
