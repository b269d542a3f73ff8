"""Memory and time of a training step under every strategy.

Trains on random exams of two views and 60 tokens with the loss `next_token`, by torchrun, on the GPUs of this machine
or else on its CPU. The published model is a ResNet-101 and a transformer of 3 + 3 layers, width 512, at 224 px; the
large one a ViT-L and a Llama of 1 billion parameters, both from random configurations, at 224 px. A step is the median
of five after two to warm up, on the slowest process. Memory is the peak of the process that needs most, on a CPU minus
what it used before the model was built. On a CPU the processes share its cores and communicate through its memory, so
that the times do not show which strategy is fast on GPUs or over a network.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks.rounds import ROOT, parser, rows_of, start, write

DEVICES = ("cpu", "cuda")
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
WARM_UP = 2
VIEWS, TOKENS, WORDS = 2, 60, 1000
RESNET = "model.encoder={{_delete_: true, name: resnet, depth: {depth}, width: {width}}}"
TRANSFORMER = (
    "model.decoder={{_delete_: true, name: transformer, layers: {layers}, encoder_layers: {layers}, width: {width}, "
    "heads: 8, feedforward: {width}}}"
)
VIT = (
    "model.encoder={{_delete_: true, name: backbone, architecture: vitdet, config: {{hidden_size: {width}, "
    "num_hidden_layers: {layers}, num_attention_heads: {heads}, image_size: {image}, patch_size: 16, "
    "pretrain_image_size: {image}}}}}"
)
LLAMA = (
    "model.decoder={{_delete_: true, name: hf_causal, architecture: llama, config: {{hidden_size: {width}, "
    "num_hidden_layers: {layers}, num_attention_heads: {heads}, num_key_value_heads: {kv}, "
    "intermediate_size: {feedforward}}}}}"
)
MODELS = {
    "full": {
        "published": [
            RESNET.format(depth=101, width=64),
            TRANSFORMER.format(layers=3, width=512),
            "data.image_size=224",
        ],
        "large": [
            VIT.format(width=1024, layers=24, heads=16, image=224),
            LLAMA.format(width=2048, layers=16, heads=32, kv=8, feedforward=8192),
            "data.image_size=224",
        ],
    },
    "small": {
        "published": [RESNET.format(depth=10, width=8), TRANSFORMER.format(layers=1, width=32), "data.image_size=32"],
        "large": [
            VIT.format(width=32, layers=1, heads=2, image=32),
            LLAMA.format(width=32, layers=1, heads=2, kv=1, feedforward=64),
            "data.image_size=32",
        ],
    },
}
QUICK = {"size": "small", "strategies": ["ddp"], "steps": 1, "processes": 1}


def measure(strategy: str, batch_size: int, steps: int, words: list[str]) -> None:
    """Trains a few steps as one of several processes, and prints the measurements as JSON."""
    from framework.build import build_optimizer, build_task
    from framework.data.loading import BatchPlan
    from framework.distributed.collectives import gather
    from framework.distributed.launch import start_accelerator
    from framework.distributed.prepare import prepare
    from framework.exam import Batch
    from framework.recipe import load_recipe
    from framework.train_step import train_step, weights_at

    keys = [f"distributed.strategy={strategy}", f"train.batch_size={batch_size}", "distiller=none"]
    recipe = load_recipe("breast", [*keys, "losses.topic=null", "losses.global_semantic=null", *words])
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
    for _ in range(WARM_UP + steps):
        started = time.perf_counter()
        train_step(trained, [batch], weights_L)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if on_gpu else _resident() - before
    seen = gather(accelerator, [[statistics.median(times[WARM_UP:]), peak]])
    if accelerator.is_main_process:
        worst = [max(column) for column in zip(*seen)]
        parameters = sum(shape.numel() for shape in trained.shapes.values())
        measured = dict(zip(("step", "peak"), worst)) | {"parameters": parameters}
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
        return np.zeros((len(words), 2), dtype=np.float32)


def launched(strategy: str, options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """What the processes of a run measured."""
    processes = options.processes
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    sizes = ["--batch-size", str(options.batch_size), "--steps", str(options.steps), "--device", options.device]
    done = subprocess.run(
        [*torchrun, "-m", "benchmarks.strategies", "--measure", strategy, *sizes, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(max(1, options.threads // processes))},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("measured ")]
    if not lines:
        sys.exit(f"{strategy}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[0].removeprefix("measured "))


def main() -> None:
    parse = parser(__doc__, DEVICES)
    parse.add_argument("--processes", type=int, default=max(2, torch.cuda.device_count()))
    parse.add_argument("--batch-size", type=int, default=4)
    parse.add_argument("--steps", type=int, default=5)
    parse.add_argument("--size", choices=MODELS, default="full")
    parse.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parse.add_argument("--measure", choices=STRATEGIES, help=argparse.SUPPRESS)  # as one of the processes
    parse.add_argument("words", nargs="*", metavar="KEY=VALUE", help="keys of the recipe, such as train.precision=bf16")
    options = start(parse, quick=QUICK)
    if options.measure:
        measure(options.measure, options.batch_size, options.steps, options.words)
        return
    rows: list[Any] = []
    for model, words in MODELS[options.size].items():
        if options.only not in model:
            continue
        found: dict[str, list[dict[str, Any]]] = {strategy: [] for strategy in options.strategies}
        for _ in range(options.rounds):
            for strategy, rounds in found.items():
                rounds.append(launched(strategy, options, [*words, *options.words]))
        parameters = next(iter(found.values()))[0]["parameters"] / 1e6
        what = f"{model}, {parameters:.3g} M parameters, {options.batch_size} exams on {options.processes} processes"
        for part, unit, scale in (("step", "s", 1), ("peak", "MiB", 2**20)):
            values = {strategy: [each[part] / scale for each in rounds] for strategy, rounds in found.items()}
            rows += rows_of(f"{what}: {'a step' if part == 'step' else 'memory of a process'}", unit, values)
    write(rows, options, ("accelerate", "deepspeed", "transformers"))


if __name__ == "__main__":
    main()
