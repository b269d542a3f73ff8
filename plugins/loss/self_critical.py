"""The term that teaches a decoder by the score of whole reports which it has written itself.

Shapes: B batch, S samples of each exam, T tokens.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from framework.exam import Batch, Features, Outputs, Term
from framework.models.generation import generate
from framework.models.sampling import evaluating, report_logp, sample, words_of
from framework.registry import register


@register("loss", "self_critical")
class SelfCritical(nn.Module):
    """Self-critical sequence training: reports that score better than a baseline become likelier, others rarer.

    Each exam's reports are drawn word by word from the decoder, on its cache. The term is -(r - b) log p: how much
    better a drawn report scores than the baseline, times the log-probability of the drawn report, from one pass with
    gradient; a mean over an exam's samples. Its value is no measure of progress and can be below 0, so
    `train.weighting: uncertainty` does not go with it. What tells are the mean rewards in the log,
    `train/self_critical/drawn` and, beside that baseline, `train/self_critical/greedy`, and the validation scores.

    Either baseline leaves the expected gradient as it is; how far single draws scatter about it differs. `greedy`, the
    report of the likeliest words, is what the paper takes. Where drawn reports earn far less than that, all of a
    batch's are made rarer, and the gradient is nearly noise: on phantom exams, gradients of two draws of 64 reports
    had a cosine of 0.02 with CIDEr as reward, and 0.22 with the mean of the exam's other draws, `mean`, which needs no
    greedy decoding.

    The decoder writes, and tells the log-probability, without dropout: the gradient is then that of the very
    distribution which the reports were drawn from. The features are those of the training pass. Scores are of each
    report against its exam's reference; CIDEr weighs words by all training reports, as in the paper.

    It costs a decoding of `samples` times the micro-batch in each step, word by word, and one of the micro-batch for
    `greedy`, beside the pass: with both, of one sample, a step of `smoke.yaml` took six times as long. They are paid
    at a weight of 0 as well, so a weight that rises late saves nothing. Begin with a model that next_token has trained
    to its end (`init_from`), since a decoder that cannot write yet draws nothing worth a reward, at a rate far below
    that of next_token from scratch, which ruins what is learned. Choose a reward that no single report wins when it is
    written for all exams (the baseline `the best single report` shows what that earns), or the decoder learns to write
    that one. Needs whole weights on each process: no zero3, no fsdp.

    Source:
        Rennie et al. 2017, arXiv 1612.00563, equations 4 to 9. Baseline `mean`: Luo 2020, arXiv 2003.09971.

    Args:
        reward: weights of scores by their names, of any metrics that score single reports; below 0 for
            scores that are better when lower.
        samples: reports drawn of each exam, in one decoding. [reports]
        baseline: what a drawn report is held against: the greedy report, or the mean of the exam's other samples.
    """

    needs = ("decoder",)
    draws = True
    signed = True

    def __init__(
        self,
        *,
        make_reward: Any,
        max_length: int,
        reward: dict[str, float] = {"cider": 1.0},  # noqa: B006
        samples: PositiveInt = 1,
        baseline: Literal["greedy", "mean"] = "greedy",
    ) -> None:
        super().__init__()
        if baseline == "mean" and samples < 2:
            raise ValueError(
                f"loss self_critical: baseline mean is that of an exam's other samples, and samples is {samples}; "
                "expected at least 2, or baseline: greedy"
            )
        self.reward, self.max_length = make_reward(dict(reward)), max_length
        self.samples, self.baseline = samples, baseline

    def count(self, batch: Batch) -> Tensor:
        """The number of exams: 0-dim float."""
        return batch.report_BT.new_tensor(len(batch.exam_ids)).float()

    def forward(self, batch: Batch, outputs: Outputs) -> Term:
        """-(r - b) log p, a mean over samples, summed over exams: 0-dim float32.

        Metrics: the reward of drawn reports, and of greedy reports if they are the baseline.
        """
        decoder = outputs.decoder
        features = Features(
            *(None if each is None else each.repeat_interleave(self.samples, dim=0) for each in outputs.features)
        )
        exam_ids = [exam_id for exam_id in batch.exam_ids for _ in range(self.samples)]
        with evaluating(decoder):
            drawn_ST = sample(decoder, features, max_length=self.max_length)  # an exam's samples one after the other
            worth_BS = self.reward(exam_ids, words_of(drawn_ST)).reshape(-1, self.samples)
            rewards = {"drawn": worth_BS.mean(1)}
            if self.baseline == "mean":
                baseline_BS = (worth_BS.sum(1, keepdims=True) - worth_BS) / (self.samples - 1)
            else:
                greedy = generate(decoder, outputs.features, max_length=self.max_length)
                rewards["greedy"] = self.reward(batch.exam_ids, greedy)
                baseline_BS = rewards["greedy"][:, None]
            advantage_S = torch.from_numpy((worth_BS - baseline_BS).ravel()).to(drawn_ST.device, torch.float32)
            total = -(advantage_S * report_logp(decoder, features, drawn_ST)).sum() / self.samples
            return Term(total, {name: total.new_tensor(worth_B.sum()) for name, worth_B in rewards.items()})
