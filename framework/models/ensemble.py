"""Several models that write one report together.

Shapes: B exams, N patches, D width, R rows of the search, W vocabulary, M members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from framework.exam import Batch, Features
from framework.models.generation import next_token_logprobs


@dataclass(frozen=True)
class EachFeatures:
    """What the encoder of each member gives."""

    of_members: tuple[Features, ...]
    patches_BND: Tensor  # the first member's, which tells how many exams there are, as its vector does
    pooled_BD: Tensor


class Ensemble(nn.Module):
    """Writes with the mean of its members' probabilities at each word.

    It stands in the place of a task and of its decoder: `features`, `decoder`, and `init_cache` and `step` on a cache,
    which is a list of the members' own. Words that no report has are left out of each member's distribution before the
    mean, as each leaves them out alone.

    Args:
        members: tasks with one vocabulary.

    Source:
        Sutskever, Vinyals and Le 2014, arXiv 1409.3215, section 3.6, and common since: the mean over members of
        p(word | words before, images).
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members: Any = nn.ModuleList(members)

    @property
    def decoder(self) -> Ensemble:
        return self

    def features(self, batch: Batch) -> EachFeatures:
        found = tuple(member.features(batch) for member in self.members)
        return EachFeatures(found, found[0].patches_BND, found[0].pooled_BD)

    def init_cache(self, features: EachFeatures) -> list[Any]:
        return [member.decoder.init_cache(own) for member, own in zip(self.members, features.of_members, strict=True)]

    def step(self, last_R: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
        """Logarithms of the mean probabilities [R, W], and the members' states after this word."""
        shares, after = [], []
        for member, state in zip(self.members, states, strict=True):
            logits_RW, state = member.decoder.step(last_R, state)
            shares.append(next_token_logprobs(logits_RW))
            after.append(state)
        return torch.stack(shares).logsumexp(0) - math.log(len(shares)), after
