"""The plan: everything about a recipe that can be told without its images and without training."""

from __future__ import annotations

from dataclasses import dataclass

from framework.build import build_optimizer, require_a_batch
from framework.data.loading import BatchPlan
from framework.distributed.deepspeed_config import deepspeed_config
from framework.distributed.resolve import precision_of, strategy_of
from framework.plan.material import Tokens, Views, count_tokens, count_views, read_material
from framework.plan.memory import Memory, memory_by_strategy, optimizer_bytes
from framework.plan.model import Activations, Part, build_meta_task, count_topics, measure_activations, parts_of
from framework.recipe import Recipe
from framework.run.init_from import find_source
from framework.task import ReportTask


@dataclass(frozen=True)
class Steps:
    """A step: batch_size = micro_batch_size x processes x accumulation exams. Early stopping may end before `total`."""

    batch_size: int
    micro_batch_size: int
    processes: int
    accumulation: int
    epochs: int
    an_epoch: int
    total: int
    checkpoints: int
    validations: int


@dataclass(frozen=True)
class Plan:
    recipe: str
    exams: dict[str, int]  # by split
    views: Views
    words: int  # of the vocabulary
    topics: int | None
    tokens: Tokens
    tokens_seen: int  # over all epochs, as far as they fill batches
    parts: tuple[Part, ...]  # the last is all together
    activations: Activations
    optimizer_bytes: float  # of each trainable parameter, in fp32
    memory: tuple[Memory, ...]
    steps: Steps


def plan(recipe: Recipe, processes: int) -> Plan:
    """Sizes, memory and steps of a recipe on so many processes. No image is loaded, no file written.

    Topics are found, and kept in the cache, only where their number is not known before.

    Raises:
        ValueError: what a run would refuse as well: the data set, a batch that does not fit the processes or exams, a
            rate of a part that is not there, a first stage or a DeepSpeed file that is none.
    """
    batch_plan = batch_plan_of(recipe, processes)
    material = read_material(recipe)
    exams = {name: len(rows) for name, rows in material.splits.items()}
    require_a_batch(recipe, exams["train"])
    steps = _steps(recipe, batch_plan, exams["train"])
    views, tokens, topics = count_views(material), count_tokens(material), count_topics(recipe, material)
    task = build_meta_task(recipe, material, topics)
    _try_the_rest(recipe, task, batch_plan)
    parts, precision = parts_of(task), precision_of(recipe)
    activations = measure_activations(task, recipe, batch_plan.micro_batch_size, views, tokens, topics, precision)
    kept = optimizer_bytes(recipe)
    return Plan(
        recipe=str(recipe.path),
        exams=exams,
        views=views,
        words=len(material.tokenizer),
        topics=topics,
        tokens=tokens,
        tokens_seen=round(tokens.mean * steps.total * steps.batch_size),
        parts=parts,
        activations=activations,
        optimizer_bytes=kept,
        memory=memory_by_strategy(
            parts[-1], kept, recipe.train.ema_decay is not None, activations.bytes, processes, strategy_of(recipe)
        ),
        steps=steps,
    )


def _try_the_rest(recipe: Recipe, task: ReportTask, batch_plan: BatchPlan) -> None:
    """Reads what a plan does not count and a run would refuse: rates of parts, the first stage, DeepSpeed's file."""
    build_optimizer(recipe, task)
    if recipe.init_from is not None:
        find_source(recipe.init_from)
    if recipe.distributed.deepspeed_config is not None:
        deepspeed_config(recipe, batch_plan)


def batch_plan_of(recipe: Recipe, processes: int) -> BatchPlan:
    """How the first process cuts its batches."""
    micro = None if recipe.train.micro_batch_size == "auto" else recipe.train.micro_batch_size
    return BatchPlan.plan(recipe.train.batch_size, micro, 0, processes)


def _steps(recipe: Recipe, batch_plan: BatchPlan, exams: int) -> Steps:
    epochs, an_epoch = recipe.train.epochs, batch_plan.steps(exams)
    total = epochs * an_epoch
    ends = {epoch * an_epoch for epoch in range(1, epochs + 1)}  # an epoch's end is always kept
    every = recipe.checkpoint.every_steps
    between = set(range(every, total + 1, every)) if every else set()
    return Steps(
        batch_size=batch_plan.batch_size,
        micro_batch_size=batch_plan.micro_batch_size,
        processes=batch_plan.processes,
        accumulation=batch_plan.accumulation,
        epochs=epochs,
        an_epoch=an_epoch,
        total=total,
        checkpoints=len(ends | between),
        validations=-(-epochs // recipe.evaluate.every_epochs),  # the last epoch's end has one in any case
    )
