"""One update: what is drawn for it, and the gradient of a global batch, however it is cut. Shapes: L terms."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from framework.data.loading import exam_seed
from framework.distributed.strategy import Strategy
from framework.exam import Batch
from framework.recipe import Recipe
from framework.recipe.schema import WeightSchedule


class Step(NamedTuple):
    """What an update was made of, over all processes. Where `loss` or `norm` is not finite, nothing was updated."""

    terms_L: Tensor  # the mean of each
    weights_L: Tensor  # the recipe's, times the factors that are learned
    loss: float  # what was minimized
    norm: float  # of the gradient
    told: dict[str, float]  # what losses tell beside their terms, the mean of each, as LOSS/WHAT


def train_step(strategy: Strategy, group: list[Batch], weights_L: Tensor) -> Step:
    """One update from the micro-batches of a step.

    The divisor of each term is known before the first backward, so sums over micro-batches and processes add up to
    the gradient of one large batch.
    """
    accelerator = strategy.accelerator
    strategy.begin_step()
    weights_L = weights_L.to(accelerator.device)
    group = [batch.to(accelerator.device) for batch in group]
    counts_L = torch.stack([strategy.task.counts(batch) for batch in group]).sum(0)
    counts_L = accelerator.reduce(counts_L, "sum").clamp(min=1)
    sums_2L = torch.zeros(2, len(weights_L), device=accelerator.device)
    means_2L, factors_L = sums_2L, weights_L
    told: dict[tuple[str, str], Tensor] = {}
    for number, batch in enumerate(group, 1):
        last = number == len(group)
        with strategy.accumulating(last=last):
            of_batch_3L = strategy(batch)
            factors_L = of_batch_3L[2].detach()
            sums_2L = sums_2L + of_batch_3L[:2].detach()
            told = {key: told.get(key, 0) + value.detach().float() for key, value in strategy.task.told().items()}
            # Wrappers average gradients over processes, and here they are to be added.
            loss = (of_batch_3L[0] / counts_L * weights_L).sum() * accelerator.num_processes
            if last:
                means_2L = accelerator.reduce(sums_2L, "sum") / counts_L
                if not bool(torch.isfinite(means_2L).all()):
                    loss = loss * math.nan  # so that the gradient tells on every process, whatever it was
            strategy.backward(loss)
    minimized_L, terms_L = means_2L
    loss_value, norm = float((minimized_L * weights_L).sum()), strategy.step()
    return Step(terms_L, weights_L * factors_L, loss_value, norm, _means(strategy, told, counts_L))


def _means(strategy: Strategy, told: Mapping[tuple[str, str], Tensor], counts_L: Tensor) -> dict[str, float]:
    """Over all processes, whose losses tell the same things in the same order; for each item that the loss counts."""
    if not told:
        return {}
    values = [value.to(counts_L.device) for value in told.values()]
    sums_K = strategy.accelerator.reduce(torch.stack(values), "sum")
    count = dict(zip(strategy.task.losses, counts_L))
    return {f"{loss}/{what}": float(value / count[loss]) for (loss, what), value in zip(told, sums_K)}


def set_seed(seed: int) -> None:
    """Begins every source of random numbers that a plugin may use."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def augmented(batch: Batch, augment: Any | None, seed: int, epoch: int, device: torch.device) -> Batch:
    """The batch on a device, its images changed there, each exam's by numbers of its own; unless `augment` is None."""
    batch = batch.to(device)
    if augment is not None:
        seeds = [exam_seed(seed, epoch, exam_id) for exam_id in batch.exam_ids]
        batch.image_BVCHW = augment(batch.image_BVCHW, seeds)
    return batch


def weights_at(recipe: Recipe, step: int, steps: int) -> Tensor:
    """The recipe's weights at a step of a run, [L], in the order of its losses: from the step alone, so that a resumed
    run has the same.

    Args:
        step: from 0 to steps - 1.
    """
    done = step / max(1, steps - 1)
    return torch.tensor([weight_at(loss.weight, done) for loss in recipe.active_losses.values()])


def weight_at(weight: float | WeightSchedule, done: float) -> float:
    """A weight where this share of the run is done: 0 at its first step, 1 at its last."""
    if not isinstance(weight, WeightSchedule):
        return weight
    if done >= weight.end:
        return weight.to
    if done <= weight.begin:
        return weight.start
    way = (done - weight.begin) / (weight.end - weight.begin)
    if weight.shape == "cosine":
        way = (1 - math.cos(math.pi * way)) / 2
    return weight.start + way * (weight.to - weight.start)


def weights_move(recipe: Recipe) -> bool:
    """Whether a weight is another at another step, and so is worth a record."""
    moves = any(isinstance(loss.weight, WeightSchedule) for loss in recipe.active_losses.values())
    return moves or recipe.train.weighting != "fixed"
