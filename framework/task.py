"""The task: a batch goes in, the sums of the loss terms come out; or features, and from them a report.

Shapes: L terms of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from framework.exam import Batch, Features, Outputs
from framework.models.blocks import eval_frozen_modules
from framework.registry.signature import BY_DECODER


class ReportTask(nn.Module):
    """Encoder, decoder and losses as one module, which is what gets wrapped, trained and saved.

    A loss gives the *sum* of its term over the items of a batch (`forward`) and, from the batch alone, how many items
    that are (`count`). The engine divides by the count over all processes and micro-batches of a step. Sums and counts
    apart make a step's loss the same however the step is cut; a mean of means would not be.

    Args:
        weighting: learns factors of the terms; None: they weigh what the recipe says.

    `frozen` names the parts that do not learn, as their parameters begin.
    """

    frozen: tuple[str, ...] = ()

    encoder: Any  # an nn.Module that offers what its kind promises, which no type of torch's can say
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
        looked_at = {word for loss in self.losses.values() for word in getattr(loss, "needs", ("logits",))}
        self._decodes = not looked_at.isdisjoint(BY_DECODER)

    def train(self, mode: bool = True) -> ReportTask:
        """As of any module, but what is frozen stays in evaluation mode."""
        super().train(mode)
        modules = dict(self.named_modules(remove_duplicate=False))
        for part in self.frozen:
            if part in modules:  # not a parameter by itself
                eval_frozen_modules(modules[part])
        return self

    def counts(self, batch: Batch) -> Tensor:
        """[L], in the order of `losses`, on the device of the batch, wherever a loss has made its number."""
        device = batch.report_BT.device
        return torch.stack([loss.count(batch).to(device, torch.float32) for loss in self.losses.values()])

    def told(self) -> dict[tuple[str, str], Tensor]:
        """What losses tell beside their terms of the batch before, by loss and name: sums over the items they count."""
        return {
            (name, what): value
            for name, loss in self.losses.items()
            for what, value in (loss.told() if hasattr(loss, "told") else {}).items()
        }

    def forward(self, batch: Batch) -> Tensor:
        """[3, L], in the order of `losses`: the sums to minimize, those of the terms, and the learned factors between.

        One tensor, since that is what every wrapper hands through with its gradient. A decoder that no loss looks at
        is left out: it is frozen, as check.py sees to.
        """
        features = self.features(batch)
        logits_BTW: Any = self.decoder(features, batch.report_BT[:, :-1]) if self._decodes else None
        outputs = Outputs(features, logits_BTW, self.decoder)
        sums_L = torch.stack([loss(batch, outputs).float() for loss in self.losses.values()])
        if self.weighting is None:
            return torch.stack([sums_L, sums_L.detach(), torch.ones_like(sums_L)])
        minimized_L, factors_L = self.weighting(sums_L, self.counts(batch))
        return torch.stack([minimized_L, sums_L.detach(), factors_L])

    def features(self, batch: Batch) -> Features:
        return self.encoder(batch.image_BVCHW, batch.view_mask_BV)


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
