"""The term that teaches an encoder what the reports speak of, by the topics that a distiller found in them.

After the knowledge-distiller term of arXiv 2406.00644.

Shapes: B batch, D width, K topics.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from framework.exam import Batch, Outputs
from framework.registry import register
from framework.registry.types import Fraction


@register("loss", "topic")
class Topic(nn.Module):
    """Cross-entropy of the report's topic, told from the images alone by a linear head.

    A soft target is how much of each topic the distiller found in the report, and the term is the cross-entropy against
    that mixture; its least value is the mixture's own entropy. Under `focal`, what a topic adds is multiplied by
    (1 - p) ^ focal, where p is its probability, so that topics already told with certainty hardly count; of a soft
    target, each topic has its own factor.

    Source:
        The knowledge distiller's term of Li et al. 2024, arXiv 2406.00644; focal loss: Lin et al. 2017, arXiv
        1708.02002, equation 4.

    Args:
        dropout: share of the features dropped before the head, in training. [share]
        target: hard, the topic that the report has most of; or soft, its weights of all topics.
        focal: gamma of the focal loss (0: plain cross-entropy). [power]
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

    def count(self, batch: Batch) -> Tensor:
        """The number of exams: 0-dim float."""
        return self._target(batch).new_tensor(len(batch.exam_ids)).float()

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """Nats, summed over exams: 0-dim, float32 whatever the precision of the features."""
        logits_BK = self.head(outputs.features.pooled_BD).float()
        target = self._target(batch)
        if not self.focal:
            return F.cross_entropy(logits_BK, target, reduction="sum")
        weights_BK = F.one_hot(target, logits_BK.shape[-1]) if self.target == "hard" else target
        logp_BK = logits_BK.log_softmax(-1)
        # The power of a number that rounds to 0 would have no gradient.
        rest_BK = (1 - logp_BK.exp()).clamp(min=1e-7)
        return -(weights_BK * rest_BK**self.focal * logp_BK).sum()

    def _target(self, batch: Batch) -> Tensor:
        """The topics, long [B], or their weights, float [B, K]."""
        target = batch.topic_B if self.target == "hard" else batch.topic_weights_BK
        if target is None:
            raise ValueError(
                f"loss topic: exams {', '.join(batch.exam_ids[:3])} ... come without topics; "
                "the recipe needs a `distiller`, or no `losses.topic`"
            )
        return target
