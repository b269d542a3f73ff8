"""An example of a loss: the log-probability of EOS at the end of the reference."""

from torch import nn

from framework.exam import EOS, PAD
from framework.registry import register


@register("loss", "short_reports")
class ShortReports(nn.Module):
    """Negative log-probability of EOS where the reference ends."""

    needs = ("logits",)

    def count(self, batch):  # the divisor, summed over all processes: the number of exams
        return batch.report_BT.new_full((), len(batch.report_BT))

    def forward(self, batch, outputs):  # the sum over those exams
        last_B = (batch.report_BT != PAD).sum(1) - 2
        logprobs_BT = outputs.logits_BTW.float().log_softmax(-1)[:, :, EOS]
        return -logprobs_BT.gather(1, last_B[:, None]).sum()
