"""Augmented copies of the images; tests/framework/models/test_generation.py has ensembles of models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from framework.exam import Batch, Features
from framework.models.ensemble import AugmentedCopies, Ensemble


class Task(nn.Module):
    """Finds the words of an exam in the mean of its pixels."""

    @property
    def decoder(self) -> Task:
        return self

    def features(self, batch: Batch) -> Features:
        pooled_BD = batch.image_BVCHW.flatten(1).mean(1, keepdim=True) * torch.arange(6.0)
        return Features(pooled_BD[:, None], torch.ones(len(pooled_BD), 1, dtype=torch.bool), pooled_BD)

    def init_cache(self, features: Features) -> Tensor:
        return features.pooled_BD

    def step(self, tokens_R: Tensor, cache: Tensor) -> tuple[Tensor, Any]:
        return cache, cache


def batch() -> Batch:
    image_BVCHW = torch.rand(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Batch(["a", "b"], image_BVCHW, torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.long))


def times(factor: float) -> Any:
    def augment(batch: Batch) -> Batch:
        batch.image_BVCHW = batch.image_BVCHW * factor
        return batch

    return augment


def next_words(task: Any, batch: Batch) -> Tensor:
    logits_RW, _ = task.decoder.step(torch.ones(2, dtype=torch.long), task.decoder.init_cache(task.features(batch)))
    return logits_RW


def test_probabilities_are_averaged_over_the_images_and_their_copies() -> None:
    exams = batch()
    before = exams.image_BVCHW.clone()
    found = next_words(AugmentedCopies(Task(), [times(2.0), times(5.0)]), exams)
    single = [
        next_words(Ensemble([Task()]), replace(exams, image_BVCHW=before * factor)).exp() for factor in (1.0, 2.0, 5.0)
    ]
    torch.testing.assert_close(found.exp(), torch.stack(single).mean(0))
    assert torch.equal(exams.image_BVCHW, before), "the batch itself is unchanged"


def test_copies_of_an_ensemble_are_averaged_too() -> None:
    exams = batch()
    plain = next_words(Ensemble([Task(), Task()]), exams)
    torch.testing.assert_close(next_words(AugmentedCopies(Ensemble([Task(), Task()]), [times(1.0)]), exams), plain)
