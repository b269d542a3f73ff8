"""The task: a batch goes in, the sums of the loss terms come out; or features, and from them a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from framework.exam import Batch, Features, Outputs


class ReportTask(nn.Module):
    """Encoder, decoder and losses as one module, which is what gets wrapped, trained and saved.

    A loss gives the *sum* of its term over the items of a batch (`forward`) and, from the batch alone, how many items
    that are (`count`). The engine divides by the count over all processes and micro-batches of a step. Sums and counts
    apart make a step's loss the same however the step is cut; a mean of means would not be.
    """

    encoder: Any  # an nn.Module that offers what its kind promises, which no type of torch's can say
    decoder: Any
    losses: Any

    def __init__(self, encoder: nn.Module, decoder: nn.Module, losses: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.losses = nn.ModuleDict(losses)

    def counts(self, batch: Batch) -> Tensor:
        """[terms], in the order of `losses`."""
        return torch.stack([loss.count(batch).float() for loss in self.losses.values()])

    def forward(self, batch: Batch) -> Tensor:
        """Sums of the terms, [terms], in the order of `losses`."""
        features = self.features(batch)
        logits_BTW = self.decoder(features, batch.report_BT[:, :-1])
        outputs = Outputs(features, logits_BTW)
        return torch.stack([loss(batch, outputs).float() for loss in self.losses.values()])

    def features(self, batch: Batch) -> Features:
        return self.encoder(batch.image_BVCHW, batch.view_mask_BV)
