"""The term that teaches how long a report should be.

Shapes: B batch, T tokens, W words in the vocabulary.
"""

from __future__ import annotations

from pydantic import PositiveFloat
from torch import Tensor, nn

from framework.exam import EOS, PAD, Batch, Outputs
from framework.registry import register


@register("loss", "my_loss")
class MyLoss(nn.Module):
    """Squared distance between the expected number of ends in a report and the one that it has.

    Args:
        scale: What a distance is divided by before it is squared.
    """

    needs = ("logits",)

    def __init__(self, *, scale: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def count(self, batch: Batch) -> Tensor:
        """The number of exams, which train_step divides by: 0-dim."""
        return batch.report_BT.new_tensor(len(batch.exam_ids))

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """The sum over exams, never a mean: 0-dim, float32 whatever the precision of the logits."""
        written_BT = batch.report_BT[:, 1:] != PAD
        ends_BT = outputs.logits_BTW.float().softmax(-1)[..., EOS]
        ends_B = (ends_BT * written_BT).sum(1)
        return (((ends_B - 1) / self.scale) ** 2).sum()
