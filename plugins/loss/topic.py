"""The term that teaches an encoder what the reports speak of, by the topics that a distiller found in them.

After the knowledge-distiller term of arXiv 2406.00644.

Shapes: B batch, D width, K topics.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from framework.exam import Batch, Outputs
from framework.registry import register
from framework.values import Fraction


@register("loss", "topic")
class Topic(nn.Module):
    """Cross-entropy of the report's topic, told from the images alone by a linear head.

    Source:
        The knowledge distiller's term of Li et al. 2024, arXiv 2406.00644.

    Args:
        dropout: share of the features dropped before the head, in training. [share]
    """

    needs = ("pooled", "topics")

    def __init__(self, *, topic_count: PositiveInt, feature_width: PositiveInt, dropout: Fraction = 0.0) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(feature_width, topic_count))

    def count(self, batch: Batch) -> Tensor:
        """The number of exams: 0-dim float."""
        return self._topics(batch).new_tensor(len(batch.exam_ids)).float()

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """Nats, summed over exams: 0-dim, float32 whatever the precision of the features."""
        logits_BK = self.head(outputs.features.pooled_BD)
        return F.cross_entropy(logits_BK.float(), self._topics(batch), reduction="sum")

    @staticmethod
    def _topics(batch: Batch) -> Tensor:
        if batch.topic_B is None:
            raise ValueError(
                f"loss topic: exams {', '.join(batch.exam_ids[:3])} ... come without topics; "
                "the recipe needs a `distiller`, or no `losses.topic`"
            )
        return batch.topic_B
