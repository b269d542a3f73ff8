"""Means of the loss terms over a split: the validation of a recipe without metrics, which writes no reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from framework.build import RunComponents
from framework.data.loading import lost_workers_reported
from framework.distributed.collectives import gather
from framework.distributed.gather_exams import no_gather
from framework.evaluation.batches import batches_of_process, split_batches
from framework.recipe import Recipe
from framework.runtime.errors import UserError
from framework.runtime.memory import is_out_of_memory
from framework.scoring.scorer import add_weighted_sum
from framework.train_step import batch_augment


@lost_workers_reported()
def mean_terms(
    accelerator: Accelerator,
    task: Any,
    components: RunComponents,
    recipe: Recipe,
    split: str,
    before_batch: Callable[[], None] | None = None,
) -> dict[str, float]:
    """The mean of each term and of its metrics over a split, and their weighted sum if it is monitored; the same on
    every process.

    Batches and augmentations are the same each time. A loss that compares exams compares those of a batch of
    `evaluate.batch_size` exams.

    Args:
        task: a task with unsharded weights in eval mode.
        before_batch: called before each batch, equally often on every process, even if a process has no batch left.
    """
    exams, processes = components.exams[split], accelerator.num_processes
    batches = split_batches(range(len(exams)), recipe.evaluate.batch_size)
    of_processes = [batches[rank::processes] for rank in range(processes)]
    # Only the copies are augmented: other terms are those of the images as they are.
    copies = task.compares_copies
    augment = batch_augment(components.augment if copies else None, recipe.train.seed, 0, copies=copies)
    rows: list[tuple[str, float, float]] = []  # name, sum, count
    for batch in batches_of_process(accelerator, exams, recipe, of_processes, None, before_batch):
        batch = augment(batch.to(accelerator.device))
        memory = fits_in_memory(len(batch.exam_ids), "while computing the loss of")
        with memory, accelerator.autocast(), torch.no_grad(), no_gather():
            output = task(batch)
        counts = dict(zip(task.losses, task.counts(batch).tolist()))
        rows += [(name, total, counts[name]) for name, total in zip(counts, output.term_sums_L.tolist())]
        rows += [(name, float(total), counts[name.rpartition("/")[0]]) for name, total in output.metrics.items()]
    totals: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for name, total, count in gather(accelerator, rows):
        totals[name] = (totals[name][0] + total, totals[name][1] + count)
    values = {name: round(total / max(count, 1), 6) for name, (total, count) in totals.items()}
    add_weighted_sum(values, recipe.evaluate.weights)
    return values


@contextmanager
def fits_in_memory(exams: int, doing: str, hint: str = "") -> Iterator[None]:
    """Turns an out-of-memory error into one that names `evaluate.batch_size`.

    Args:
        exams: in the batch.
        doing: what runs out of memory, for the message.
        hint: what else would help.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "out-of-memory",
            f"out of memory {doing} {exams} exams at a time",
            place="evaluate.batch_size",
            hint=f"Set evaluate.batch_size={max(1, exams // 2)}{hint}.",
        ) from error
