"""Times steps of the trainer beside a bare PyTorch loop.

Both update the same model with the same losses on the same batches, which are loaded before. The bare loop augments
the images, sums the losses, clips the gradient and sets the learning rate, as the recipe says, and does nothing else.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rounds import compare, parser, start, write
from framework.build import build_optimizer
from framework.data.loading import grouped
from framework.exam import Batch
from framework.recipe import Recipe, load_recipe
from framework.run.lifecycle import open_run_for_training
from framework.train_step import batch_augment, weights_at
from framework.trainer import Trainer


def trainer_steps(trainer: Trainer, steps: Sequence[Sequence[Batch]]) -> Callable[[], None]:
    """The steps as `Trainer.epoch` makes them, with everything that a run does between two epochs."""

    def work() -> None:
        trainer.state.step = 0  # of the schedule; records are written as often as in a run
        trainer.throughput.start()
        for micro_batches in trainer.throughput.timed(iter(steps)):
            trainer._handle_stop()
            trainer.step(micro_batches)

    return work


def bare_steps(trainer: Trainer, task: Any, steps: Sequence[Sequence[Batch]]) -> Callable[[], list[float]]:
    recipe: Recipe = trainer.recipe
    optimizer = build_optimizer(recipe, task)
    base_lrs = [group["lr"] for group in optimizer.param_groups]
    weights_L = weights_at(recipe, 0, 1)
    assert trainer.batch_plan.accumulation == 1 and recipe.train.clip_by == "norm"
    augment = batch_augment(trainer.components.augment, recipe.train.seed, 0)

    def work() -> list[float]:
        losses: list[Tensor] = []
        for number, (batch,) in enumerate(steps):
            for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
                group["lr"] = lr * trainer.schedule(number)
            batch = augment(batch.to("cpu"))  # which scales the images
            output = task(batch)
            loss = (output.objective_L / task.counts(batch).clamp(min=1) * weights_L).sum()
            loss.backward()
            nn.utils.clip_grad_norm_(task.parameters(), trainer.strategy.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    return work


def main() -> None:
    parse = parser(__doc__)
    parse.add_argument("--recipes", nargs="+", default=["smoke", "breast"])
    parse.add_argument("--steps", type=int, default=8)
    parse.add_argument("--set", nargs="*", default=[], help="overrides of the recipes")
    options = start(parse, quick={"recipes": ["smoke"], "steps": 2})
    rows: list[Any] = []
    for name in options.recipes:
        with tempfile.TemporaryDirectory() as root:
            recipe = load_recipe(name, [f"run.root={root}", "train.precision=fp32", *options.set])
            with open_run_for_training(recipe) as run:
                task = copy.deepcopy(run.components.task).train()
                trainer = Trainer(run)
                trainer.strategy.task.train()
                steps = list(islice(grouped(trainer.loader, 1), options.steps))
                ours, bare = trainer_steps(trainer, steps), bare_steps(trainer, task, steps)
                works = {"the trainer": ours, "a bare loop": bare}
                rows += compare(f"{name}, {len(steps)} steps", "steps", len(steps), works, options.rounds)
                trainer.close()
    write(rows, options, ("accelerate",))


if __name__ == "__main__":
    main()
