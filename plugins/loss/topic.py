"""Topic classification: trains the encoder to predict the topic that a distiller assigned to the report.

After the knowledge-distiller term of arXiv 2406.00644.

Shapes: B batch, D width, K topics.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from framework.exam import Batch, Outputs
from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.errors import UserError


@register("loss", "topic")
class Topic(nn.Module):
    """Cross-entropy of the report's topic, predicted from the pooled image features by a linear head.

    A soft target is the distiller's distribution over topics, and the loss is the cross-entropy against it; its minimum
    is the entropy of that distribution. `focal` multiplies the term of each topic by (1 - p) ^ focal, where p is the
    predicted probability of the topic, so that confident predictions contribute little.

    Source:
        The knowledge distiller's term of Li et al. 2024, arXiv 2406.00644; focal loss: Lin et al. 2017, arXiv
        1708.02002, equation 4.

    Args:
        dropout: dropout probability of the features before the head. [share]
        target: hard: the most probable topic; soft: the distribution over topics.
        focal: gamma of the focal loss; 0 gives plain cross-entropy. [power]
    """

    needs = ("pooled", "topics")

    def __init__(
        self,
        *,
        topic_count: PositiveInt,
        feature_width: PositiveInt,
        dropout: Fraction = 0.0,
        target: Literal["hard", "soft"] = "hard",
        focal: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        self.target, self.focal = target, focal
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(feature_width, topic_count))

    @property
    def topic_head(self) -> nn.Linear:
        """What tells the topic: it is saved with the model."""
        head = self.head[1]
        assert isinstance(head, nn.Linear)
        return head

    def count(self, batch: Batch) -> Tensor:
        """The number of exams: 0-dim float."""
        return self._target(batch).new_full((), len(batch.exam_ids), dtype=torch.float32)

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """Nats, summed over exams: 0-dim, float32 whatever the precision of the features."""
        logits_BK = self.head(outputs.features.pooled_BD).float()
        target = self._target(batch)
        if not self.focal:
            return F.cross_entropy(logits_BK, target, reduction="sum")
        weights_BK = F.one_hot(target, logits_BK.shape[-1]) if self.target == "hard" else target
        logp_BK = logits_BK.log_softmax(-1)
        # A power of exactly 0 has no finite gradient.
        rest_BK = (1 - logp_BK.exp()).clamp(min=1e-7)
        return -(weights_BK * rest_BK**self.focal * logp_BK).sum()

    def _target(self, batch: Batch) -> Tensor:
        """The topics, long [B], or their weights, float [B, K]."""
        target = batch.topic_B if self.target == "hard" else batch.topic_weights_BK
        if target is None:
            raise UserError(
                "missing-input", f"exams {', '.join(batch.exam_ids[:3])} ... have no topics", place="losses.topic",
                hint="Set a distiller, or remove this loss.",
            )  # fmt: skip
        return target
