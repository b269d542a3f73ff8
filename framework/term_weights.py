"""What each term of the loss weighs: by the recipe, at each step of a run, and by what is learned beside it.

Shapes: L terms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from framework.recipe import Recipe
from framework.recipe.schema import WeightSchedule


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


class Uncertainty(nn.Module):
    """Learned factors of the terms: exp(-s) T + s / 2 stands for each term T, with one s = log sigma^2 that is learned.

    A term that is hard to lower is taken for a noisy one, and its factor exp(-s) falls; s / 2 keeps all factors from
    falling together. At the least of the sum, a factor is 1 / (2 T). Where the recipe weighs a term, it weighs both
    parts, since a weight of T alone would be learned away. A term that can fall below 0 has no such least: its factor
    would grow without end.

    Source:
        Kendall, Gal and Cipolla 2018, arXiv 1705.07115, equation 10 with log sigma^2 learned (section 3.2).
    """

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.log_variance_L = nn.Parameter(torch.zeros(terms))

    def forward(self, sums_L: Tensor, counts_L: Tensor) -> tuple[Tensor, Tensor]:
        """What stands for the sums of the terms over some items, [L], and the factors, [L].

        s / 2 is given once an item, as sums are, so that what stands for a step's terms is the same however the step
        is cut.
        """
        factors_L = torch.exp(-self.log_variance_L.float())
        return factors_L * sums_L + self.log_variance_L.float() / 2 * counts_L, factors_L.detach()
