"""How long training waits for a checkpoint, beside `torch.save` of the same state.

Saves a model of about 90 million parameters with AdamW's state on one process, in the background, into the current
folder. Training waits while the state is copied; a thread then writes it, computes the SHA-256 and syncs the disk.
`torch.save` does neither of the two. Nothing trains during the benchmark, so it does not measure how much that thread
slows training down.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.rounds import parser, rows_of, start, write
from framework.build import build_optimizer, build_task, build_tokenizer
from framework.checkpoint.export import ModelTexts
from framework.checkpoint.format import RetentionPolicy, Snapshot, TrainState
from framework.checkpoint.saver import AsyncCheckpointer
from framework.data.loading import BatchPlan
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.distributed.strategy import Strategy
from framework.recipe import PortableRecipe, load_recipe

DEVICES = ("cpu", "cuda")


def with_state(strategy: Strategy) -> None:
    """Gives the optimizer its state, as one step would."""
    for parameter in strategy.task.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    strategy.optimizer.step()
    strategy.optimizer.zero_grad()


def main() -> None:
    parse = parser(__doc__, DEVICES)
    parse.add_argument("--layers", type=int, default=12, help="of the decoder, and of its encoder of patches")
    parse.add_argument("--width", type=int, default=512)
    options = start(parse, quick={"layers": 1, "width": 32})
    keys = [f"model.decoder.{key}={options.layers}" for key in ("layers", "encoder_layers")]
    keys += [f"model.decoder.width={options.width}", f"model.decoder.feedforward={4 * options.width}"]
    keys += ["model.decoder.heads=8", "model.encoder.depth=18", "distiller=none"]
    recipe = load_recipe("breast", [*keys, "losses.topic=null", "losses.global_semantic=null"])
    accelerator = start_accelerator(recipe)
    tokenizer = build_tokenizer(recipe, ["A hypoechoic mass in the left breast ."], None)
    task = build_task(recipe, tokenizer, None, None, trained=True)
    batch_plan = BatchPlan.plan(recipe.train.batch_size, None, 0, 1)
    strategy = prepare(accelerator, recipe, task, batch_plan, lambda task: build_optimizer(recipe, task))
    with_state(strategy)
    waited: list[float] = []
    complete: list[float] = []
    theirs: list[float] = []
    size = 0
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder, alone = Path(name) / "checkpoints", Path(name) / "alone.pt"
        saver = AsyncCheckpointer(folder, RetentionPolicy(1, 0, True), background=True)
        for step in range(options.rounds + 1):
            started = time.perf_counter()
            state = strategy.state()
            texts = ModelTexts(tokenizer, PortableRecipe(""))
            saver.save(Snapshot(TrainState(step=step), state, strategy.export_weights(state), texts))
            waited.append(time.perf_counter() - started)
            saver.finish()
            complete.append(time.perf_counter() - started)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            started = time.perf_counter()
            torch.save({"model": task.state_dict(), "optimizer": strategy.optimizer.state_dict()}, alone)
            theirs.append(time.perf_counter() - started)
        saver.close()
        bytes_alone = alone.stat().st_size
    parameters = sum(weight.numel() for weight in task.parameters()) / 1e6
    what = f"{parameters:.1f} M parameters with AdamW"
    timed: dict[str, Any] = {"training waits": waited, "complete": complete}
    rows = []
    for part, seconds in timed.items():
        rows += rows_of(f"{what}, {part}", "s", {"ours": seconds[1:], "torch.save": theirs[1:]})
    rows += rows_of(f"{what}, on disk", "MiB", {"ours": [size / 2**20], "torch.save": [bytes_alone / 2**20]})
    write(rows, options, ("safetensors",))


if __name__ == "__main__":
    main()
