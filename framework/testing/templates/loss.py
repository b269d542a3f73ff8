"""Report length: the expected number of EOS tokens in a report should be 1.

Shapes: B batch, T tokens, W words in the vocabulary.
"""

from __future__ import annotations

from pydantic import PositiveFloat
from torch import Tensor, nn

from framework.exam import EOS, PAD, Batch, Outputs
from framework.registry import register


@register("loss", "my_loss")
class MyLoss(nn.Module):
    """Squared error of the expected number of EOS tokens.

    Args:
        scale: Divisor of the error before it is squared.
    """

    needs = ("logits",)

    def __init__(self, *, scale: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def count(self, batch: Batch) -> Tensor:
        """The number of exams, by which train_step divides the sum. 0-dim."""
        return batch.report_BT.new_full((), len(batch.exam_ids))

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """The sum over exams, not the mean. 0-dim, float32 for any dtype of the logits."""
        token_BT = batch.report_BT[:, 1:] != PAD
        eos_BT = outputs.logits_BTW.float().softmax(-1)[..., EOS]
        eos_B = (eos_BT * token_BT).sum(1)
        return (((eos_B - 1) / self.scale) ** 2).sum()
