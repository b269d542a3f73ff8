"""train.clip_by=value clips each value of the gradient, under every strategy that supports it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness import ROOT, records
from torch.distributed.tensor import DTensor

from framework.build import build_components, build_optimizer
from framework.data.loading import BatchPlan, collate
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.recipe import load_recipe
from framework.train_step import train_step, weights_at

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
FEW = [
    "data.dataset.exams=8",
    "data.dataset.val_exams=1",
    "data.dataset.test_exams=1",
    "distiller=none",
    "~losses.topic",
]


def gradients(folder: Path, *keys: str) -> tuple[dict[str, torch.Tensor], float]:
    """The gradients that the optimizer receives in the first step, and the norm that is returned."""
    recipe = load_recipe(SMOKE, [*FEW, f"data.cache_dir={folder / 'cache'}", *keys])
    accelerator = start_accelerator(recipe)
    components = build_components(recipe, accelerator, run=folder)
    batch_plan = BatchPlan.plan(8, None, 0, 1)
    strategy = prepare(accelerator, recipe, components.task, batch_plan, lambda task: build_optimizer(recipe, task))
    found: dict[str, torch.Tensor] = {}

    def note(*_: object) -> None:
        for name, weight in strategy.task.named_parameters():
            grad = weight.grad.full_tensor() if isinstance(weight.grad, DTensor) else weight.grad
            found[name] = grad.detach().clone()

    strategy.optimizer.register_step_pre_hook(note)
    exams = components.exams["train"]
    norm = float(train_step(strategy, [collate([exams[n] for n in range(8)])], weights_at(recipe, 0, 1)).grad_norm)
    return found, norm


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_values_above_the_limit_are_clipped_and_the_others_unchanged(strategy: str, tmp_path: Path) -> None:
    unclipped, norm = gradients(tmp_path, f"distributed.strategy={strategy}", "train.max_grad_norm=null")
    clipped, clipped_norm = gradients(
        tmp_path, f"distributed.strategy={strategy}", "train.max_grad_norm=0.01", "train.clip_by=value"
    )
    assert clipped_norm == pytest.approx(norm, rel=1e-6), "the norm before clipping is returned"
    assert any((grad.abs() > 0.01).any() for grad in unclipped.values())
    for name, grad in unclipped.items():
        assert torch.allclose(clipped[name], grad.clamp(-0.01, 0.01), atol=1e-7), name


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_clip_the_gradient_of_the_whole_batch(exact_run: Callable[..., Path], strategy: str) -> None:
    """Clipping before the average over processes would give another gradient."""
    keys = ("train.clip_by=value", "train.max_grad_norm=0.01")
    one, two = exact_run(*keys), exact_run(*keys, f"distributed.strategy={strategy}", processes=2)
    first, second = records(one, "train/loss"), records(two, "train/loss")
    assert first.keys() == second.keys() and max(abs(first[step] - second[step]) for step in first) < 1e-5
    by_norm = records(exact_run("train.max_grad_norm=0.01"), "train/loss")
    assert max(abs(first[step] - by_norm[step]) for step in first) > 1e-3, "clipping acts"
