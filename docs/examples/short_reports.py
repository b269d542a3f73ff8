"""A loss in a file of its own: penalizes reports that are too long."""

from torch import nn

from framework.exam import EOS, PAD
from framework.registry import register


@register("loss", "short_reports")
class ShortReports(nn.Module):
    """How far the decoder is from ending a report where its reference ends."""

    needs = ("logits",)

    def count(self, batch):  # train_step divides by this, over all processes: here, by exams
        return batch.report_BT.new_tensor(len(batch.report_BT))

    def forward(self, batch, outputs):  # the sum over those exams
        last_B = (batch.report_BT != PAD).sum(1) - 2
        ends_BT = outputs.logits_BTW.float().log_softmax(-1)[:, :, EOS]
        return -ends_BT.gather(1, last_B[:, None]).sum()
