"""Several models that generate one report together.

Shapes: B exams, N patches, D width, R rows of the search, W words in the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from framework.exam import Batch, Features
from framework.models.generation import next_token_logprobs


@dataclass(frozen=True)
class EnsembleFeatures:
    """The features of each member. The tensors are those of the first, from which the search reads the batch size."""

    members: tuple[Features, ...]
    patches_BND: Tensor
    pooled_BD: Tensor


class Ensemble(nn.Module):
    """Generates by the mean of its members' next-token probabilities.

    Stands in for a task and for its decoder: `features`, `decoder`, `forward`, `attention`, and `init_cache` and `step`
    on a list of the members' caches. Each member leaves out the tokens that no report contains before the mean is
    taken.

    Args:
        members: tasks with the same vocabulary.

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

    def features(self, batch: Batch) -> EnsembleFeatures:
        features = tuple(member.features(batch) for member in self.members)
        return EnsembleFeatures(features, features[0].patches_BND, features[0].pooled_BD)

    @property
    def encoder(self) -> Any:
        """That of the first member, which tells how patches lie in the views."""
        return self.members[0].encoder

    def forward(self, features: EnsembleFeatures, tokens_BT: Tensor) -> Tensor:
        """Logarithms of the mean probabilities of the next tokens, [B, T, W]."""
        return _log_mean([next_token_logprobs(member.decoder(own, tokens_BT)) for member, own in self._pairs(features)])

    def attention(self, features: EnsembleFeatures, tokens_BT: Tensor) -> Tensor | None:
        """The mean of the members' attention, [B, T, N]; None if a member has none, or other patches."""
        weights = [attention_of(member.decoder, own, tokens_BT) for member, own in self._pairs(features)]
        shapes = {None if each is None else each.shape for each in weights}
        return None if None in shapes or len(shapes) > 1 else torch.stack(weights).mean(0)  # type: ignore[arg-type]

    def _pairs(self, features: EnsembleFeatures) -> Iterable[tuple[Any, Features]]:
        return zip(self.members, features.members, strict=True)

    def init_cache(self, features: EnsembleFeatures) -> list[Any]:
        return [member.decoder.init_cache(own) for member, own in self._pairs(features)]

    def step(self, tokens_R: Tensor, caches: list[Any]) -> tuple[Tensor, list[Any]]:
        """Logarithms of the mean probabilities [R, W], and the members' caches after these tokens."""
        logprobs, after = [], []
        for member, cache in zip(self.members, caches, strict=True):
            logits_RW, cache = member.decoder.step(tokens_R, cache)
            logprobs.append(next_token_logprobs(logits_RW))
            after.append(cache)
        return _log_mean(logprobs), after


class AugmentedCopies(Ensemble):
    """Generates by the mean of one model's probabilities over the images as they are and over augmented copies.

    Args:
        task: a task or an ensemble.
        augments: of each copy, changes a batch and returns it.

    Source:
        Krizhevsky, Sutskever and Hinton 2012, NeurIPS, section 4.1, with the words of a report in place of one class.
    """

    def __init__(self, task: nn.Module, augments: Sequence[Callable[[Batch], Batch]]) -> None:
        super().__init__([task] * (1 + len(augments)))
        self.augments = augments

    def features(self, batch: Batch) -> EnsembleFeatures:
        copies = [batch, *(augment(replace(batch)) for augment in self.augments)]
        features = tuple(self.members[0].features(copy) for copy in copies)
        return EnsembleFeatures(features, features[0].patches_BND, features[0].pooled_BD)


def attention_of(decoder: Any, features: Any, tokens_BT: Tensor) -> Tensor | None:
    """Where a decoder looks for each logit, [B, T, N]; None if it does not offer it."""
    found: Tensor | None = decoder.attention(features, tokens_BT) if hasattr(decoder, "attention") else None
    return found


def _log_mean(logprobs: list[Tensor]) -> Tensor:
    return torch.stack(logprobs).logsumexp(0) - math.log(len(logprobs))
