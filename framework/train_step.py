"""One update: the gradient of a global batch, however it is divided, and the weights of the terms. Shapes: L terms."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from framework.data.loading import exam_seed
from framework.distributed.collectives import all_reduce_sum
from framework.distributed.strategy import Strategy
from framework.exam import Batch
from framework.recipe import Recipe
from framework.recipe.schema import WeightSchedule
from framework.runtime.step_parts import step_part


class StepOutput(NamedTuple):
    """One update over all processes, as tensors on the device: reading a value waits for the device.

    Attributes:
        loss: the objective, weighted. 0-dim
        grad_norm: norm of the gradient before clipping. 0-dim
        terms_L: the mean of each term.
        weights_L: the recipe's weights times the learned factors.
        metrics: LOSS/METRIC -> mean over the items that the loss counts. 0-dim each
        finite: whether loss and gradient are finite; if not, no weight changed. 0-dim bool
    """

    loss: Tensor
    grad_norm: Tensor
    terms_L: Tensor
    weights_L: Tensor
    metrics: dict[str, Tensor]
    finite: Tensor


def train_step(
    strategy: Strategy,
    micro_batches: Sequence[Batch],
    weights_L: Tensor,
    augment: Callable[[Batch], Batch] | None = None,
) -> StepOutput:
    """Updates the weights once from the micro-batches of a step.

    The divisor of each term is known before the first backward pass, so sums over micro-batches and processes add up to
    the gradient of one large batch.

    Args:
        micro_batches: of this process, on the host; each is moved to the device when it is used.
        augment: changes a micro-batch on the device; see `batch_augment`.
    """
    accelerator, task = strategy.accelerator, strategy.task
    strategy.begin_step()
    weights_L = weights_L.to(accelerator.device, non_blocking=True)  # a blocking copy waits for the step before
    # Counts need no images, which stay on the host until their micro-batch is used.
    micro_batches = [batch.to(accelerator.device, images=False) for batch in micro_batches]
    counts_L = torch.stack([task.counts(batch) for batch in micro_batches]).sum(0)
    counts_L = all_reduce_sum(accelerator, counts_L).clamp(min=1)
    sums_2L = torch.zeros(2, len(weights_L), device=accelerator.device)  # objective and terms
    means_2L, factors_L = sums_2L, weights_L
    metrics: dict[str, Tensor] = {}
    for number, batch in enumerate(micro_batches, 1):
        last = number == len(micro_batches)
        batch = batch.to(accelerator.device)
        if augment is not None:
            batch = augment(batch)
        with strategy.accumulating(last=last):
            with step_part("forward"):
                output = strategy(batch)
            factors_L = output.factors_L
            sums_2L = sums_2L + torch.stack([output.objective_L.detach(), output.term_sums_L])
            metrics = {name: metrics.get(name, 0) + value for name, value in output.metrics.items()}
            # Wrappers average gradients over processes; here they add up.
            loss = (output.objective_L / counts_L * weights_L).sum() * accelerator.num_processes
            if last:
                means_2L = all_reduce_sum(accelerator, sums_2L) / counts_L
                # A loss that is not finite on one process makes the gradient NaN on all.
                loss = loss * torch.where(torch.isfinite(means_2L).all(), 1.0, math.nan)
            with step_part("backward"):
                strategy.backward(loss)
    objective_L, terms_L = means_2L
    loss = (objective_L * weights_L).sum()
    with step_part("optimizer"):
        grad_norm = strategy.step()
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        strategy.update_ema(finite)
    return StepOutput(loss, grad_norm, terms_L, weights_L * factors_L, _means(strategy, metrics, counts_L), finite)


def _means(strategy: Strategy, sums: dict[str, Tensor], counts_L: Tensor) -> dict[str, Tensor]:
    """Means over all processes, whose losses return the same metrics in the same order."""
    if not sums:
        return {}
    values = [value.to(counts_L.device) for value in sums.values()]
    sums_K = all_reduce_sum(strategy.accelerator, torch.stack(values))
    count = dict(zip(strategy.task.losses, counts_L))
    return {name: value / count[name.rpartition("/")[0]] for name, value in zip(sums, sums_K)}


def set_seed(seed: int) -> None:
    """Seeds every source of random numbers that a plugin may use."""
    # torch.manual_seed walks the call stack for each kind of device that this machine lacks.
    seed_torch = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seed_torch(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def batch_augment(plugin: Any | None, seed: int, epoch: int, *, copies: bool = False) -> Callable[[Batch], Batch]:
    """A function that augments a batch by an augment plugin, each exam with a seed of its own; None changes nothing.

    Args:
        copies: also augments the images a second time, for losses that compare the two.
    """

    def augmented(batch: Batch, *, copy: bool) -> Tensor:
        seeds = [exam_seed(seed, epoch, exam_id, copy=copy) for exam_id in batch.exam_ids]
        image_BVCHW: Tensor = plugin(batch.image_BVCHW, seeds)  # type: ignore[misc]
        return image_BVCHW

    def augment(batch: Batch) -> Batch:
        if plugin is not None:
            copy_BVCHW = augmented(batch, copy=True) if copies else None
            batch.image_BVCHW, batch.copy_BVCHW = augmented(batch, copy=False), copy_BVCHW
        return batch

    return augment


def weights_at(recipe: Recipe, step: int, steps: int) -> Tensor:
    """The recipe's weights at a step, [L], in the order of its losses. They depend on the step alone.

    Args:
        step: from 0 to steps - 1.
    """
    done = step / max(1, steps - 1)
    return torch.tensor([weight_at(loss.weight, done) for loss in recipe.active_losses.values()])


def weight_at(weight: float | WeightSchedule, done: float) -> float:
    """A weight at the fraction `done` of the run: 0 is its first step, 1 its last."""
    if not isinstance(weight, WeightSchedule):
        return weight
    if done >= weight.end:
        return weight.to
    if done <= weight.begin:
        return weight.start
    fraction = (done - weight.begin) / (weight.end - weight.begin)
    if weight.shape == "cosine":
        fraction = (1 - math.cos(math.pi * fraction)) / 2
    return weight.start + fraction * (weight.to - weight.start)


def weights_change(recipe: Recipe) -> bool:
    """Whether the weights differ between steps; only then are they logged."""
    scheduled = any(isinstance(loss.weight, WeightSchedule) for loss in recipe.active_losses.values())
    return scheduled or recipe.train.weighting != "fixed"
