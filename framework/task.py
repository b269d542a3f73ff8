"""The task: a batch goes in, the sums of the loss terms come out; or features, and from them a report.

Shapes: B batch, V views, M views of all exams, C channels, H W image, D width, L terms of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from framework.exam import Batch, Features, Outputs, Term
from framework.models.blocks import eval_frozen_modules
from framework.registry.signature import BY_DECODER, COPIES


class TaskOutput(NamedTuple):
    """Sums over the items of a batch, in the order of `ReportTask.losses`.

    DistributedDataParallel, fully_shard and DeepSpeed pass a NamedTuple of tensors on with its gradients, which
    tests/canaries pin.

    Attributes:
        objective_L: what is minimized, with gradient.
        term_sums_L: the terms themselves, detached; they equal `objective_L` unless their weights are learned.
        factors_L: learned factors of the terms, detached; ones if none are learned.
        metrics: LOSS/METRIC -> sum over the items that the loss counts, detached.
    """

    objective_L: Tensor
    term_sums_L: Tensor
    factors_L: Tensor
    metrics: dict[str, Tensor]


class ReportTask(nn.Module):
    """Encoder, decoder and losses as one module: what is wrapped, trained and saved.

    A loss returns the *sum* of its term over the items of a batch (`forward`) and, from the batch alone, the number of
    these items (`count`). `train_step` divides by the count over all processes and micro-batches of a step, so the loss
    of a step does not depend on how the step is divided. A mean of means would.

    Args:
        weighting: learns factors of the terms; None keeps the recipe's weights.

    Attributes:
        frozen: parameter-name prefixes of the parts that are not trained.
        compares_copies: whether a loss compares two augmentations of the images, which a batch then has.
    """

    frozen: tuple[str, ...] = ()

    encoder: Any  # an nn.Module with the attributes of its kind, which torch's types cannot express
    decoder: Any
    losses: Any

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        losses: Mapping[str, nn.Module],
        weighting: Uncertainty | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.losses = nn.ModuleDict(losses)
        self.weighting = weighting
        needed = {word for loss in self.losses.values() for word in getattr(loss, "needs", ("logits",))}
        self._decodes = not needed.isdisjoint(BY_DECODER)
        self._reads_exams = bool(needed - {COPIES})
        self.compares_copies = COPIES in needed

    def train(self, mode: bool = True) -> ReportTask:
        """Sets training mode, except for frozen parts, which stay in evaluation mode."""
        super().train(mode)
        modules = dict(self.named_modules(remove_duplicate=False))
        for part in self.frozen:
            if part in modules:  # else a single parameter
                eval_frozen_modules(modules[part])
        return self

    def counts(self, batch: Batch) -> Tensor:
        """Number of items of each loss, [L] float32, on the device of the reports. Images are not read."""
        device = batch.report_BT.device
        return torch.stack([loss.count(batch).to(device, torch.float32) for loss in self.losses.values()])

    def forward(self, batch: Batch) -> TaskOutput:
        """The terms of a batch. The decoder runs only if a loss needs it; otherwise it is frozen (recipe/check.py)."""
        features: Any = self.features(batch) if self._reads_exams else None
        logits_BTW: Any = self.decoder(features, batch.report_BT[:, :-1]) if self._decodes else None
        copies_2MD = self._copies(batch) if self.compares_copies else None
        outputs = Outputs(features, logits_BTW, self.decoder, copies_2MD)
        sums: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            term = loss(batch, outputs)
            if isinstance(term, Term):
                metrics |= {f"{name}/{metric}": value.detach().float() for metric, value in term.metrics.items()}
                term = term.total
            sums.append(term.float())
        sums_L = torch.stack(sums)
        if self.weighting is None:
            return TaskOutput(sums_L, sums_L.detach(), torch.ones_like(sums_L), metrics)
        objective_L, factors_L = self.weighting(sums_L, self.counts(batch))
        return TaskOutput(objective_L, sums_L.detach(), factors_L, metrics)

    def features(self, batch: Batch) -> Features:
        return self.encoder(batch.image_BVCHW, batch.view_mask_BV)

    def _copies(self, batch: Batch) -> Tensor:
        """Each view is encoded as an exam of its own, so that its place in the exam cannot tell it from others."""
        rows = batch.view_mask_BV.nonzero()
        image_NCHW = torch.cat([image[rows[:, 0], rows[:, 1]] for image in (batch.image_BVCHW, batch.copy_BVCHW)])  # type: ignore[index]
        alone_N1 = batch.view_mask_BV.new_ones(len(image_NCHW), 1)
        copies_2MD: Tensor = self.encoder(image_NCHW[:, None], alone_N1).pooled_BD.unflatten(0, (2, -1))
        return copies_2MD


class Uncertainty(nn.Module):
    """Learned factors of the terms: each term T is replaced by exp(-s) T + s / 2 with one learned s = log sigma^2.

    The factor exp(-s) of a term that stays high falls, as if the term were noisy; s / 2 keeps the factors from falling
    together. At the minimum of the sum, a factor is 1 / (2 T). The recipe's weight of a term multiplies both parts,
    since a weight of T alone would be compensated. A term that can fall below 0 has no such minimum: its factor would
    grow without bound.

    Source:
        Kendall, Gal and Cipolla 2018, arXiv 1705.07115, equation 10 with log sigma^2 learned (section 3.2).
    """

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.log_variance_L = nn.Parameter(torch.zeros(terms))

    def forward(self, sums_L: Tensor, counts_L: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sums of the terms over some items, [L], and the factors, [L].

        s / 2 is added once an item, so the objective of a step does not depend on how the step is divided.
        """
        factors_L = torch.exp(-self.log_variance_L.float())
        return factors_L * sums_L + self.log_variance_L.float() / 2 * counts_L, factors_L.detach()
