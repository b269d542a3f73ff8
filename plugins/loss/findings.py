"""Findings: trains the encoder to predict what the training reports state, attribute by attribute.

Shapes: B batch, N patches, D width, A attributes, P pairs of an attribute and a value.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from framework.exam import Batch, Features, Outputs, Term
from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.errors import UserError
from framework.text.findings.reader import Finding, read

log = logging.getLogger(__name__)
UNKNOWN = -1  # a target where the report does not tell


@register("loss", "findings")
class Findings(nn.Module):
    """Class-balanced cross-entropy of the findings of the report, predicted from the image features.

    The lexicon of the metric `findings_f1` reads pairs of an attribute and a value, such as (margin, circumscribed),
    from the training reports; nobody labels anything. A head predicts each pair by a sigmoid, since a report of several
    lesions may state several values. A pair is predicted if at least `min_count` training reports state it and as many
    state its absence: another value of the attribute, or nothing if the attribute has no other value. Where a report
    does not name the attribute, its pairs are not counted.

    Positives and negatives of a pair are weighted by 1 / E(n), where n is the number of training reports with them and
    E(n) = (1 - balance^n) / (1 - balance) their effective number, and scaled to a mean weight of 1 over the training
    reports, so rare findings weigh more, but no more in total than frequent ones.

    `pooled` reads the pooled features. `queries` learns a query for each attribute, whose softmax over the normalized
    patches pools them; queries start at 0, which is the mean of the patches.

    Metric: `balanced_accuracy`, the mean of sensitivity and specificity over pairs, with the training reports'
    frequencies. 0.5 is chance.

    Source:
        Class-balanced loss: Cui et al. 2019, arXiv 1901.05555, equation 8. Attribute queries: Liu et al. 2021
        (Query2Label), arXiv 2107.10834, with one layer of attention.

    Args:
        pooling: pooled: the encoder's pooled features; queries: learned attention over the patches for each attribute.
        min_count: training reports that must state a pair, and its absence. [reports]
        balance: 0 weights positives and negatives equally; 1 by inverse frequency.
    """

    needs: tuple[str, ...] = ("patches", "pooled")

    def __init__(
        self,
        *,
        training_reports: Sequence[str],
        feature_width: PositiveInt,
        pooling: Literal["pooled", "queries"] = "pooled",
        min_count: PositiveInt = 10,
        balance: Fraction = 0.999,
    ) -> None:
        super().__init__()
        self.needs = ("pooled",) if pooling == "pooled" else ("patches",)
        found = [read(report) for report in training_reports]
        self.pairs = sorted(frozenset[Finding]().union(*found))
        target_NP = self._targets(found)
        count_2P = np.stack([(target_NP == 0).sum(0), (target_NP == 1).sum(0)])
        kept_P = (count_2P >= min_count).all(0)
        if not kept_P.any():
            raise UserError(
                "does-not-fit",
                f"no finding is stated by {min_count} of {len(found)} training reports and its absence by as many",
                place="losses.findings.min_count", expected="reports that the lexicon reads",
                hint="Lower min_count, or remove this loss; `describe metric/findings_f1 --read TEXT` shows readings.",
            )  # fmt: skip
        # Rare pairs are not predicted, but say that another value of their attribute is absent.
        self.kept = np.flatnonzero(kept_P)
        names = [self.pairs[column] for column in self.kept]
        log.info("findings: %s", ", ".join(": ".join(pair) for pair in names))
        attributes = sorted({attribute for attribute, _ in names})
        self.register_buffer("attribute_P", torch.tensor([attributes.index(attribute) for attribute, _ in names]))
        kept_2P = torch.from_numpy(count_2P[:, kept_P]).double()
        self.register_buffer("weight_2P", _unit_mean(1 / _effective_number(kept_2P, balance), kept_2P))
        self.register_buffer("balanced_2P", _unit_mean(1 / kept_2P, kept_2P))
        self.query_AD = nn.Parameter(torch.zeros(len(attributes), feature_width)) if pooling == "queries" else None
        self.head = nn.Linear(feature_width, len(names))

    attribute_P: Tensor
    weight_2P: Tensor  # of absent and of stated findings
    balanced_2P: Tensor  # of the metric

    def targets(self, reports: Sequence[str]) -> np.ndarray:
        """1 where a report states a pair, 0 where it does not, -1 where it does not name the attribute: int8 [n, P]."""
        return self._targets([read(report) for report in reports])[:, self.kept]

    def count(self, batch: Batch) -> Tensor:
        """The number of pairs that are stated or absent, over all exams: 0-dim float."""
        return (batch.targets["findings"] != UNKNOWN).sum().float()

    def forward(self, batch: Batch, outputs: Outputs) -> Term:
        """Nats, weighted, summed over the counted pairs: 0-dim float32."""
        target_BP = batch.targets["findings"]
        stated_BP, known_BP = target_BP == 1, target_BP != UNKNOWN
        logits_BP = self._logits(outputs.features).float()
        weight_BP = torch.where(stated_BP, self.weight_2P[1], self.weight_2P[0]) * known_BP
        total = F.binary_cross_entropy_with_logits(logits_BP, stated_BP.float(), weight_BP, reduction="sum")
        right_BP = ((logits_BP > 0) == stated_BP) & known_BP
        balanced_BP = torch.where(stated_BP, self.balanced_2P[1], self.balanced_2P[0]) * right_BP
        return Term(total, {"balanced_accuracy": balanced_BP.sum()})

    def _logits(self, features: Features) -> Tensor:
        if self.query_AD is None:
            return self.head(features.pooled_BD)
        patches_BND = features.patches_BND
        keys_BND = F.layer_norm(patches_BND, patches_BND.shape[-1:])
        scores_BAN = torch.einsum("ad,bnd->ban", self.query_AD, keys_BND).float() / keys_BND.shape[-1] ** 0.5
        scores_BAN = scores_BAN.masked_fill(~features.patch_mask_BN[:, None], float("-inf"))
        logits_BAP = self.head(scores_BAN.softmax(-1).to(patches_BND.dtype) @ patches_BND)
        return logits_BAP.gather(1, self.attribute_P.expand(len(logits_BAP), 1, -1))[:, 0]

    def _targets(self, found: Sequence[frozenset[Finding]]) -> np.ndarray:
        columns: dict[str, list[int]] = defaultdict(list)
        for column, (attribute, _) in enumerate(self.pairs):
            columns[attribute].append(column)
        target_NP = np.zeros((len(found), len(self.pairs)), dtype=np.int8)
        for row, findings in zip(target_NP, found):
            named = {attribute for attribute, _ in findings}
            for attribute, own in columns.items():
                if attribute not in named and len(own) > 1:
                    row[own] = UNKNOWN
                for column in own:
                    row[column] = 1 if self.pairs[column] in findings else row[column]
        return target_NP


def _effective_number(count_2P: Tensor, balance: float) -> Tensor:
    return count_2P if balance == 1 else (1 - balance**count_2P) / (1 - balance)


def _unit_mean(weight_2P: Tensor, count_2P: Tensor) -> Tensor:
    """Scales the weights of each pair to a mean of 1 over the training reports, float32."""
    return (weight_2P * count_2P.sum(0) / (weight_2P * count_2P).sum(0)).float()
