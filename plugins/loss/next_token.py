"""Next-token prediction.

Shapes: B batch, T tokens, W words in the vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from framework.exam import PAD, Batch, Outputs
from framework.registry import register
from framework.registry.types import Fraction


@register("loss", "next_token")
class NextToken(nn.Module):
    """Cross-entropy of each token of the report given the ones before it.

    Source:
        Label smoothing: Szegedy et al. 2016, arXiv 1512.00567, section 7.

    Args:
        label_smoothing: probability mass distributed uniformly over the vocabulary; 0 disables. [share]
    """

    needs = ("logits",)

    def __init__(self, *, label_smoothing: Fraction = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def count(self, batch: Batch) -> Tensor:
        """The number of target tokens, EOS included: 0-dim float."""
        return (batch.report_BT[:, 1:] != PAD).sum().float()

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """Nats, summed over the target tokens: 0-dim, float32 whatever the precision of the logits."""
        return F.cross_entropy(
            outputs.logits_BTW.flatten(0, 1).float(),
            batch.report_BT[:, 1:].flatten(),
            ignore_index=PAD,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
