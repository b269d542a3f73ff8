"""The term that teaches a decoder by the score of whole reports which it has written itself.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from framework.exam import Batch, Outputs
from framework.generation import generate
from framework.registry import register
from framework.sampling import evaluating, report_logp, sample, words_of


@register("loss", "self_critical")
class SelfCritical(nn.Module):
    """Self-critical sequence training: reports that score better than the greedy one become likelier, others rarer.

    Each exam's report is drawn word by word from the decoder, on its cache, and so is the greedy report, which is the
    baseline. The term is -(r - b) log p: how much better the drawn report scores than the greedy one, times the
    log-probability of the drawn report, from one pass with gradient. Its value is no measure of progress (watch the
    validation scores) and can be below 0, so `train.weighting: uncertainty` does not go with it.

    The decoder writes, and tells the log-probability, without dropout: the gradient is then that of the very
    distribution which the report was drawn from. The features are those of the training pass. Scores are of each report
    against its exam's reference; CIDEr weighs words by all training reports, as in the paper.

    It costs two decodings of the micro-batch in each step, word by word, beside the pass: a step of `smoke.yaml` took
    six times as long. A decoder that cannot write yet draws nothing worth a reward: begin from one that was trained on
    next_token, or let the weight rise late in the run, at a rate that is small by then; one that suits next_token from
    scratch ruins what is learned. Needs whole weights on each process: no zero3, no fsdp.

    Source:
        Rennie et al. 2017, arXiv 1612.00563, equations 4 to 9.

    Args:
        reward: weights of scores by their names, of any metrics; scores that are better when lower count negatively.
    """

    needs = ("decoder",)
    draws = True
    signed = True

    def __init__(self, *, make_reward: Any, max_tokens: int, reward: dict[str, float] = {"cider": 1.0}) -> None:  # noqa: B006
        super().__init__()
        self.reward, self.max_tokens = make_reward(dict(reward)), max_tokens

    def count(self, batch: Batch) -> Tensor:
        """The number of exams: 0-dim float."""
        return batch.report_BT.new_tensor(len(batch.exam_ids)).float()

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """-(r - b) log p, summed over exams: 0-dim float32."""
        decoder, features = outputs.decoder, outputs.features
        with evaluating(decoder):
            drawn_BT = sample(decoder, features, max_tokens=self.max_tokens)
            greedy = generate(decoder, features, max_tokens=self.max_tokens)
            worth_B, baseline_B = (self.reward(batch.exam_ids, reports) for reports in (words_of(drawn_BT), greedy))
            advantage_B = torch.from_numpy(worth_B - baseline_B).to(drawn_BT.device, torch.float32)
            return -(advantage_B * report_logp(decoder, features, drawn_BT)).sum()
