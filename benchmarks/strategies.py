"""Measures memory and time of a step under every strategy: `python -m benchmarks.strategies`.

Trains on random exams with torchrun, on the GPUs of this machine or else on its CPU. Prints a table, and with
`--out FILE` writes it as JSON with machine, versions and date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import report

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
WARM_UP, STEPS = 2, 5
# The published sizes: ResNet-101 and a transformer of 3 layers, two views of 224 pixels.
SIZES = [
    "model.encoder.depth=101",
    "model.encoder.width=64",
    "model.decoder.layers=3",
    "model.decoder.encoder_layers=3",
]
SIZES += ["model.decoder.width=512", "model.decoder.heads=8", "model.decoder.feedforward=512", "data.image_size=224"]
VIEWS, TOKENS, WORDS = 2, 60, 1000


def measure(strategy: str, batch_size: int, words: list[str]) -> None:
    """Trains a few steps as one of several processes, and prints the measurements as JSON."""
    from framework.build import build_optimizer, build_task
    from framework.data.loading import BatchPlan
    from framework.distributed.collectives import gather
    from framework.distributed.launch import start_accelerator
    from framework.distributed.prepare import prepare
    from framework.exam import Batch
    from framework.recipe import load_recipe
    from framework.train_step import train_step, weights_at

    keys = [f"distributed.strategy={strategy}", f"train.batch_size={batch_size}", "distiller=none", *words]
    recipe = load_recipe("breast", [*keys, "losses.topic=null", "losses.global_semantic=null"])
    accelerator = start_accelerator(recipe)
    on_gpu = accelerator.device.type == "cuda"
    before = _resident()
    task = build_task(recipe, _Words(), None, _Space(), trained=True)
    batch_plan = BatchPlan.plan(batch_size, None, accelerator.process_index, accelerator.num_processes)
    trained = prepare(accelerator, recipe, task, batch_plan, lambda task: build_optimizer(recipe, task))
    weights_L = weights_at(recipe, 0, 1)
    shape = (batch_plan.micro_batch_size, VIEWS, recipe.data.channels, recipe.data.image_size, recipe.data.image_size)
    generator = torch.Generator().manual_seed(accelerator.process_index)
    batch = Batch(
        [str(row) for row in range(batch_plan.micro_batch_size)],
        torch.rand(shape, generator=generator),
        torch.ones(shape[:2], dtype=torch.bool),
        torch.randint(4, WORDS, (batch_plan.micro_batch_size, TOKENS), generator=generator),
    )
    trained.task.train()
    times = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        train_step(trained, [batch], weights_L)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if on_gpu else _resident() - before
    seen = gather(accelerator, [[statistics.median(times[WARM_UP:]), peak]])
    if accelerator.is_main_process:
        worst = [max(column) for column in zip(*seen)]
        device = torch.cuda.get_device_name() if on_gpu else "CPU"
        parameters = sum(shape.numel() for shape in trained.shapes.values())
        measured = dict(zip(("step", "peak"), worst)) | {"device": device, "parameters": parameters}
        print("measured " + json.dumps(measured), flush=True)
    accelerator.end_training()


def _resident() -> int:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Words:
    """The part of a tokenizer that building a task needs."""

    vocabulary = tuple(f"word{number}" for number in range(WORDS))

    def __len__(self) -> int:
        return WORDS


class _Space:
    """A report space that no loss of this benchmark uses."""

    def word_vectors(self, words: Any) -> Any:
        return torch.zeros(len(words), 2).numpy()


def launched(strategy: str, processes: int, batch_size: int, words: list[str]) -> dict[str, Any]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    asked = ["--measure", strategy, "--batch-size", str(batch_size), *words]
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    done = subprocess.run(
        [*torchrun, "-m", "benchmarks.strategies", *asked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": threads},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("measured ")]
    if not lines:
        sys.exit(f"{strategy}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[0].removeprefix("measured "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--processes", type=int, default=max(2, torch.cuda.device_count()))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--measure", choices=STRATEGIES, help="Measures as one of the processes; for torchrun.")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help=f"Size of the model; default: {' '.join(SIZES)}")
    options = parser.parse_args()
    words = options.words or SIZES
    if options.measure:
        measure(options.measure, options.batch_size, words)
        return
    rows: list[tuple[str, str, float]] = []
    device, parameters = "", 0
    for strategy in STRATEGIES:
        found = launched(strategy, options.processes, options.batch_size, words)
        device, parameters = found["device"], found["parameters"]
        rows.append((f"{strategy}: a step of {options.batch_size} exams", "s", round(found["step"], 3)))
        rows.append((f"{strategy}: peak memory of a process", "MiB", round(found["peak"] / 2**20)))
    cores = len(os.sched_getaffinity(0))
    machine = f"{platform.machine()}, {cores} cores, {device}, {options.processes} processes, torch {torch.__version__}"
    report(f"{machine}, {parameters / 1e6:.1f} M parameters", rows, options.out)


if __name__ == "__main__":
    main()
