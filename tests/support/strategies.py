"""Trains a few steps under every strategy, and moves their states to one another; facts for test_strategies.py.

    python -m torch.distributed.run --nproc_per_node 2 strategies.py FOLDER

Each process writes its facts to FOLDER/facts-RANK.json. `trained` does the same in the process of a test.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from framework.build import RunComponents, build_components, build_optimizer
from framework.checkpoint.format import SavedState
from framework.data.loading import BatchPlan, collate
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.distributed.strategy import Strategy
from framework.recipe import Recipe, load_recipe
from framework.train_step import train_step, weights_at

NAMES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
# Every state is loaded by the same strategy and by another one.
MOVES = [(name, name) for name in NAMES] + list(zip(NAMES, (*NAMES[1:], NAMES[0])))
STEPS, SAVED = 6, 3
# Two micro-batches accumulate on each of two processes, clipping acts in every step, and parts of the model are frozen
# or have a learning rate of their own.
KEYS = (
    "data.dataset.exams=24", "data.dataset.val_exams=1", "data.dataset.test_exams=1", "distiller.topics=2",
    "train.micro_batch_size=2", "train.max_grad_norm=0.3", "train.ema_decay=0.9", "optimizer.lr=1e-2",
    "optimizer.encoder_lr=5e-3", "train.freeze=[losses.topic]",
)  # fmt: skip


@dataclass
class Setting:
    """What all strategies start from."""

    recipe: Recipe
    components: RunComponents
    plan: BatchPlan
    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Setting:
        smoke = str(Path(__file__).resolve().parents[2] / "recipes" / "smoke.yaml")
        cache = f"data.cache_dir={folder / 'cache'}"
        recipe = load_recipe(smoke, [*KEYS, cache, "distributed.strategy=fsdp"])  # starts a process group on any number
        accelerator = start_accelerator(recipe)
        components = build_components(recipe, accelerator, run=folder)
        plan = BatchPlan.plan(8, 2, accelerator.process_index, accelerator.num_processes)
        return cls(recipe, components, plan, folder)

    def strategy(self, name: str) -> Strategy:
        recipe = self.recipe.model_copy(
            update={"distributed": self.recipe.distributed.model_copy(update={"strategy": name})}
        )
        accelerator, task = start_accelerator(recipe), copy.deepcopy(self.components.task)
        return prepare(accelerator, recipe, task, self.plan, lambda task: build_optimizer(recipe, task))

    def train(self, strategy: Strategy, first: int, last: int) -> dict[str, Any]:
        """Steps `first` to `last` - 1: losses and norms of the gradient."""
        exams, weights_L = self.components.exams["train"], weights_at(self.recipe, 0, 1)
        found: dict[str, Any] = {"losses": [], "norms": []}
        strategy.task.train()
        for step in range(first, last):
            epoch, done = divmod(step, self.plan.steps(len(exams)))
            cut = self.plan.epoch(len(exams), 1, epoch, done)[: self.plan.accumulation]
            group = [collate([exams[number] for number in numbers]) for numbers in cut]
            strategy.set_lr(1 - step / 10)
            output = train_step(strategy, group, weights_L)
            found["losses"].append(float(output.loss))
            found["norms"].append(float(output.grad_norm))
        return found

    def save(self, strategy: Strategy, name: str) -> dict[str, torch.Tensor]:
        state = strategy.state()
        if strategy.accelerator.is_main_process:
            (self.folder / name).mkdir()
            save_file(state, self.folder / name / "training.safetensors")
        strategy.accelerator.wait_for_everyone()
        return state


def trained(setting: Setting, name: str) -> dict[str, Any]:
    """Trains under a strategy, and saves its state in the middle and at the end."""
    strategy = setting.strategy(name)
    main = strategy.accelerator.is_main_process
    found = setting.train(strategy, 0, SAVED)
    middle = setting.save(strategy, f"{name}-middle")
    rest = setting.train(strategy, SAVED, STEPS)
    end = setting.save(strategy, f"{name}-end")
    found = {key: values + rest[key] for key, values in found.items()}
    found |= {"saved_on_main_only": bool(middle) == bool(end) == main}
    with strategy.full_params_model() as task:
        weights = load_file(setting.folder / f"{name}-end" / "training.safetensors")
        found["generates_with_ema"] = all(
            torch.equal(parameter, weights[f"ema/{name}" if f"ema/{name}" in weights else f"weights/{name}"])
            for name, parameter in task.named_parameters()
        )
        found["in_evaluation"] = not any(part.training for part in task.modules())
    return found


def moved(setting: Setting, before: str, now: str) -> dict[str, Any]:
    """Loads the state of a strategy under another, whose own weights were all changed, and trains on."""
    with torch.no_grad():
        kept = copy.deepcopy(setting.components.task)
        for parameter in setting.components.task.parameters():
            parameter.add_(1.0)
        strategy = setting.strategy(now)
        setting.components.task.load_state_dict(kept.state_dict())
    folder = setting.folder / f"{before}-middle"
    saved = load_file(folder / "training.safetensors")
    strategy.load(SavedState(folder) if strategy.accelerator.is_main_process else None, SAVED)
    state = strategy.state()
    same = {name: torch.equal(value, saved[name]) for name, value in state.items()}
    found: dict[str, Any] = {"loaded": sorted(state) == sorted(saved) if state else True}
    found["changed"] = [name for name, equal in same.items() if not equal]
    found |= setting.train(strategy, SAVED, STEPS)
    end = strategy.state()
    expected = load_file(setting.folder / f"{now}-end" / "training.safetensors")
    found["worst"] = max((float((end[name].float() - expected[name].float()).abs().max()) for name in end), default=0)
    return found


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    setting = Setting.make(folder)
    facts: dict[str, Any] = {name: trained(setting, name) for name in NAMES}
    facts |= {f"{before}-{now}": moved(setting, before, now) for before, now in MOVES}
    (folder / f"facts-{rank}.json").write_text(json.dumps(facts))
    torch.distributed.barrier()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(0)  # DeepSpeed's own exit may wait for a peer that has gone
