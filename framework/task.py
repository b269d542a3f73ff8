"""The task: a batch goes in, the sums of the loss terms come out; or features, and from them a report.

Shapes: L terms of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from framework.exam import Batch, Features, Outputs
from framework.signature import BY_DECODER
from framework.stages import still
from framework.term_weights import Uncertainty


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
                still(modules[part])
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
