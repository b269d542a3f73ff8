"""One update: what is drawn for it, and the gradient of a global batch, however it is cut."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.data import exam_seed
from framework.distributed import Strategy
from framework.exam import Batch


def take_step(strategy: Strategy, group: list[Batch], weights: Tensor) -> tuple[Tensor, float]:
    """One update from the micro-batches of a step. Returns the mean of each term over all processes, and the norm of
    the gradient; where either is not finite, nothing was updated.

    The divisor of each term is known before the first backward, so sums over micro-batches and processes add up to
    the gradient of one large batch.
    """
    accelerator = strategy.accelerator
    strategy.begin_step()
    counts = torch.stack([strategy.task.counts(batch) for batch in group]).sum(0).to(accelerator.device)
    counts = accelerator.reduce(counts, "sum").clamp(min=1)
    sums, terms = torch.zeros_like(weights), torch.zeros_like(weights)
    for number, batch in enumerate(group, 1):
        last = number == len(group)
        with strategy.accumulating(last=last):
            of_batch = strategy(batch.to(accelerator.device))
            sums += of_batch.detach()
            # Wrappers average gradients over processes, and here they are to be added.
            loss = (of_batch / counts * weights).sum() * accelerator.num_processes
            if last:
                terms = accelerator.reduce(sums, "sum") / counts
                if not bool(torch.isfinite(terms).all()):
                    loss = loss * math.nan  # so that the gradient tells on every process, whatever it was
            strategy.backward(loss)
    return terms, strategy.step()


def draw_anew(seed: int) -> None:
    """Begins every source of random numbers that a plugin may use."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def augmented(batch: Batch, augment: Any | None, seed: int, epoch: int) -> Batch:
    """The batch with its images changed, each exam's by numbers of its own; without `augment`, as it is."""
    if augment is not None:
        seeds = [exam_seed(seed, epoch, exam_id) for exam_id in batch.exam_ids]
        batch.image_BVCHW = augment(batch.image_BVCHW, seeds)
    return batch
