"""Measures how long training waits for a checkpoint, and how long writing it takes: `make bench`.

Prints a table, and with `--out FILE` writes it as JSON with machine, versions and date.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.table import report
from framework.build import build_optimizer, build_task, build_tokenizer
from framework.checkpoint.export import ModelTexts
from framework.checkpoint.format import RetentionPolicy, Snapshot, TrainState
from framework.checkpoint.saver import AsyncCheckpointer
from framework.data.loading import BatchPlan
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.distributed.strategy import Strategy
from framework.recipe import PortableRecipe, load_recipe

# About 90 million parameters, which with AdamW's state are 1 GiB.
SIZE = [
    "model.decoder.layers=12",
    "model.decoder.encoder_layers=12",
    "model.decoder.width=512",
    "model.decoder.heads=8",
]
SIZE += ["model.decoder.feedforward=2048", "model.encoder.depth=18"]
REPEATS = 5


def with_state(strategy: Strategy) -> None:
    """Gives the optimizer its state, as one step would."""
    for parameter in strategy.task.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    strategy.optimizer.step()
    strategy.optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe = load_recipe("breast", [*SIZE, "distiller=none", "losses.topic=null", "losses.global_semantic=null"])
    accelerator = start_accelerator(recipe)
    tokenizer = build_tokenizer(recipe, ["A hypoechoic mass in the left breast ."], None)
    task = build_task(recipe, tokenizer, None, None, trained=True)
    batch_plan = BatchPlan.plan(recipe.train.batch_size, None, 0, 1)
    strategy = prepare(accelerator, recipe, task, batch_plan, lambda task: build_optimizer(recipe, task))
    with_state(strategy)
    waited, wrote, size = [], [], 0
    with tempfile.TemporaryDirectory(dir=".") as folder:
        saver = AsyncCheckpointer(Path(folder) / "checkpoints", RetentionPolicy(1, 0, True), background=True)
        for step in range(REPEATS + 1):
            started = time.perf_counter()
            state = strategy.state()
            texts = ModelTexts(tokenizer, PortableRecipe(""))
            saver.save(Snapshot(TrainState(step=step), state, strategy.export_weights(state), texts))
            handed_over = time.perf_counter()
            saver.finish()
            waited.append(handed_over - started)
            wrote.append(time.perf_counter() - started)
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        saver.close()
    wait, write = (statistics.median(times[1:]) for times in (waited, wrote))
    parameters = sum(weight.numel() for weight in task.parameters()) / 1e6
    rows = [
        (f"{parameters:.0f} M parameters with AdamW, on disk", "GiB", size / 2**30),
        ("until the checkpoint is complete", "s", write),
        ("of that, training waits", "s", wait),
        ("of that, training waits", "%", 100 * wait / write),
    ]
    cores = len(os.sched_getaffinity(0))
    versions = f"torch {torch.__version__}, median of {REPEATS}"
    report(f"{platform.machine()}, {cores} cores, {accelerator.device.type}, {versions}", rows, options.out)


if __name__ == "__main__":
    main()
