"""The plan of a recipe: sizes, memory and steps, without images and without training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from framework.build import build_optimizer, require_a_batch
from framework.data.loading import BatchPlan
from framework.distributed.deepspeed_config import deepspeed_config
from framework.distributed.resolve import precision_of, strategy_of
from framework.plan.inputs import Tokens, Views, count_tokens, count_views, read_inputs
from framework.plan.memory import Memory, memory_by_strategy, optimizer_bytes
from framework.plan.model import Activations, Part, build_meta_task, count_topics, estimate_activations, parts_of
from framework.recipe import Recipe
from framework.run.init_from import find_source
from framework.task import ReportTask


@dataclass(frozen=True)
class Steps:
    """Number of steps, without early stopping. batch_size = micro_batch_size x processes x accumulation."""

    batch_size: int
    micro_batch_size: int
    processes: int
    accumulation: int
    epochs: int
    per_epoch: int
    total: int
    checkpoints: int
    validations: int


@dataclass(frozen=True)
class Plan:
    recipe: str
    exams: dict[str, int]  # by split
    views: Views
    words: int  # size of the vocabulary
    topics: int | None
    tokens: Tokens
    tokens_seen: int  # over all epochs, in complete batches
    parts: tuple[Part, ...]  # the last is the total
    activations: Activations
    optimizer_bytes: float  # per trainable fp32 parameter
    memory: tuple[Memory, ...]
    steps: Steps


def plan(recipe: Recipe, processes: int) -> Plan:
    """Plans a run. Loads no image, and writes nothing but topics to the cache, if their number is not known.

    Raises:
        UserError: an error that a run would raise: in the data set, the batch size, group learning rates, `init_from`,
            or the DeepSpeed file.
    """
    batch_plan = batch_plan_of(recipe, processes)
    inputs = read_inputs(recipe)
    exams = {name: len(rows) for name, rows in inputs.splits.items()}
    require_a_batch(recipe, exams["train"])
    steps = _steps(recipe, batch_plan, exams["train"])
    views, tokens, topics = count_views(inputs), count_tokens(inputs), count_topics(recipe, inputs)
    task = build_meta_task(recipe, inputs, topics)
    _check_other_keys(recipe, task, batch_plan)
    parts, precision = parts_of(task), precision_of(recipe)
    activations = estimate_activations(task, recipe, batch_plan.micro_batch_size, views, tokens, topics, precision)
    per_parameter = optimizer_bytes(recipe)
    return Plan(
        recipe=str(recipe.path),
        exams=exams,
        views=views,
        words=len(inputs.tokenizer),
        topics=topics,
        tokens=tokens,
        tokens_seen=round(tokens.mean * steps.total * steps.batch_size),
        parts=parts,
        activations=activations,
        optimizer_bytes=per_parameter,
        memory=memory_by_strategy(
            parts[-1],
            per_parameter,
            recipe.train.ema_decay is not None,
            activations.bytes,
            processes,
            strategy_of(recipe),
        ),
        steps=steps,
    )


def _check_other_keys(recipe: Recipe, task: ReportTask, batch_plan: BatchPlan) -> None:
    """Checks keys that the plan itself does not need: group learning rates, init_from, DeepSpeed's file."""
    build_optimizer(recipe, task)
    if recipe.init_from is not None:
        find_source(recipe.init_from)
    if recipe.distributed.deepspeed_config is not None:
        deepspeed_config(recipe, batch_plan)


def batch_plan_of(recipe: Recipe, processes: int) -> BatchPlan:
    """The batch plan of the first process."""
    micro = None if recipe.train.micro_batch_size == "auto" else recipe.train.micro_batch_size
    return BatchPlan.plan(recipe.train.batch_size, micro, 0, processes)


def _steps(recipe: Recipe, batch_plan: BatchPlan, exams: int) -> Steps:
    epochs, per_epoch = recipe.train.epochs, batch_plan.steps(exams)
    total = epochs * per_epoch
    every = recipe.checkpoint.every_steps
    # Each epoch ends with a checkpoint, which may be a periodic one too.
    periodic = total // every - total // math.lcm(every, per_epoch) if every else 0
    return Steps(
        batch_size=batch_plan.batch_size,
        micro_batch_size=batch_plan.micro_batch_size,
        processes=batch_plan.processes,
        accumulation=batch_plan.accumulation,
        epochs=epochs,
        per_epoch=per_epoch,
        total=total,
        checkpoints=epochs + periodic,
        validations=-(-epochs // recipe.evaluate.every_epochs),  # always after the last epoch
    )
