"""Optimizer, schedules and augmentation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from framework.optim import parameter_groups
from plugins.augment.jitter import Jitter
from plugins.optimizer.adamw import adamw
from plugins.schedule.cosine import cosine
from plugins.schedule.step import step


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 2), nn.Linear(2, 2)


def test_encoder_and_rest_learn_at_their_own_rates_and_only_matrices_decay() -> None:
    task = Two()
    optimizer = adamw(groups=parameter_groups(task, lr=0.1, encoder_lr=0.01), weight_decay=0.5)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == {
        id(task.encoder.weight): (0.01, 0.5),
        id(task.encoder.bias): (0.01, 0.0),
        id(task.decoder.weight): (0.1, 0.5),
        id(task.decoder.bias): (0.1, 0.0),
    }


def test_frozen_parameters_are_in_no_group() -> None:
    task = Two()
    task.encoder.requires_grad_(False)
    assert {group.name for group in parameter_groups(task, 0.1, None)} == {"rest"}


def test_cosine_rises_then_falls_to_its_floor() -> None:
    factor = cosine(steps=100, warmup=0.1, floor=0.2)
    assert factor(0) == pytest.approx(0.1) and factor(10) == pytest.approx(1.0)
    assert factor(55) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert factor(100) == pytest.approx(0.2)


def test_step_drops_as_published() -> None:
    factor = step(steps=50, every=0.56, gamma=0.1)
    assert [factor(n) for n in (0, 27, 28, 49)] == pytest.approx([1, 1, 0.1, 0.1])
    assert step(steps=50, every=0.0)(49) == 1.0


def test_jitter_of_nothing_changes_nothing_and_black_stays_black() -> None:
    image = torch.rand(1, 1, 1, 16, 16)
    still = Jitter(shift=0.0, scale=0.0, degrees=0.0, gain=0.0, contrast=0.0)(image, [1])
    assert torch.allclose(still, image, atol=1e-5)
    mirrored = Jitter(shift=0.0, scale=0.0, degrees=0.0, gain=0.0, contrast=0.0, flip=1.0)(image, [1])
    assert torch.allclose(mirrored, image.flip(-1), atol=1e-5)
    assert Jitter()(torch.zeros(1, 1, 1, 16, 16), [1]).max() == 0
