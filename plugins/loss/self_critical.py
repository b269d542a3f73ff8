"""Self-critical sequence training: policy gradient on the scores of sampled reports.

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
from framework.runtime.errors import UserError


@register("loss", "self_critical")
class SelfCritical(nn.Module):
    """Self-critical sequence training: raises the probability of sampled reports that score above a baseline.

    Reports are sampled token by token from the decoder. The loss is -(r - b) log p, a mean over the samples of an exam:
    r is the reward of a sampled report, b the baseline, and p its probability, computed in one pass with gradient. The
    value does not measure progress and can be negative, so `train.weighting: uncertainty` is refused. Watch the mean
    rewards `train/self_critical/drawn` and `train/self_critical/greedy` (with that baseline), and the validation
    scores.

    Both baselines leave the expected gradient unchanged; its variance differs. The paper uses `greedy`, the greedily
    decoded report. If sampled reports score far below it, the advantages of a whole batch are negative and the gradient
    is nearly noise: on phantom exams with CIDEr, the gradients of two samplings of 64 reports had a cosine of 0.02 with
    `greedy`, and of 0.22 with `mean`, the mean reward of the exam's other samples, which needs no greedy decoding.

    The decoder samples and computes log p without dropout, so the gradient belongs to the distribution that was
    sampled. The features are those of the training pass. Each report is scored against its exam's reference; CIDEr
    takes its document frequencies from all training reports, as in the paper.

    Each step decodes `samples` times the micro-batch, and once more for `greedy`: with one sample and `greedy`, a step
    of `smoke.yaml` took six times as long. A weight of 0 saves none of this. Start from a model that next_token has
    trained (`init_from`), since an untrained decoder samples nothing that earns a reward. Use a learning rate far below
    that of training from scratch, which would destroy the model. Choose a reward on which no single report does well
    for all exams (the baseline `the best single report` shows its score), or the decoder learns to write that report
    alone. Needs full weights on each process: no zero3, no fsdp.

    Source:
        Rennie et al. 2017, arXiv 1612.00563, equations 4 to 9. Baseline `mean`: Luo 2020, arXiv 2003.09971.

    Args:
        reward: weight of each score by name, of metrics that score single reports; negative for scores that are
            better when lower.
        samples: reports sampled for each exam. [reports]
        baseline: greedy: the reward of the greedily decoded report; mean: the mean reward of the exam's other samples.
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
            raise UserError(
                "conflicting-settings", f"samples is {samples}, and baseline mean averages an exam's other samples",
                place="losses.self_critical.samples", expected="at least 2, or baseline: greedy",
            )  # fmt: skip
        self.reward, self.max_length = make_reward(dict(reward)), max_length
        self.samples, self.baseline = samples, baseline

    def count(self, batch: Batch) -> Tensor:
        """The number of exams: 0-dim float."""
        return batch.report_BT.new_full((), len(batch.exam_ids), dtype=torch.float32)

    def forward(self, batch: Batch, outputs: Outputs) -> Term:
        """-(r - b) log p, averaged over samples and summed over exams: 0-dim float32.

        Metrics: the reward of sampled reports, and of greedy reports if they are the baseline.
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
