"""Processes, strategies, accumulation and launchers change speed and memory, never a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import strategies
import torch
from harness import ROOT, launch, records
from torch import nn

from framework.build import RunComponents, build_components, build_optimizer
from framework.data.loading import BatchPlan, collate
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.distributed.strategy import Strategy
from framework.models.blocks import blocks_of, enable_activation_checkpointing
from framework.recipe import Recipe, load_recipe
from framework.runtime.files import read_lines
from framework.train_step import train_step, weights_at

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
# Float noise of other orders of summation, over 24 steps of a loss that starts at 5.7; measured: 1e-6 and 4e-6.
LOSS_NOISE, NORM_NOISE = 1e-5, 1e-4
BF16_NOISE = 0.1  # a weight of bf16 has 8 bits
long = pytest.mark.long


@dataclass(frozen=True)
class Setup:
    """A strategy, processes and launcher to train the recipe of EXACT with."""

    strategy: str
    micro_batch_size: int
    processes: int = 2
    by: str | None = None
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        by = self.by or "accelerate"
        return f"{self.processes}-{self.strategy}-of-{self.micro_batch_size}-{by}{''.join(self.flags)}"


# 8 exams a step: on two processes, micro-batches of 4 are one process's share, of 1 are four accumulated. `facts` below
# compares each strategy on two processes with one process; this compares a whole run.
SETUPS = [Setup("zero3", 4, by="deepspeed")]
LONG_SETUPS = [
    Setup("fsdp", 1, by="torchrun"),
    Setup("ddp", 2, processes=1),
    Setup("ddp", 8, processes=1, by="accelerate"),
    Setup("ddp", 4, by="launch"),
    Setup("ddp", 1),
    Setup("ddp", 4, by="torchrun"),
    Setup("zero1", 4),
    Setup("zero1", 1, by="torchrun"),
    Setup("zero2", 1),
    Setup("zero2", 4, flags=("--use_deepspeed", "--zero_stage", "2")),
    Setup("zero3", 1),
    Setup("zero3", 8, processes=1),
    Setup("fsdp", 4),
    Setup("fsdp", 8, processes=1),
    Setup("fsdp", 1, processes=4),
    Setup("zero1", 2, processes=4),
]


def same_losses(one: Path, other: Path, noise: float = LOSS_NOISE) -> None:
    first, second = (records(run, "train/loss") for run in (one, other))
    assert first.keys() == second.keys() and len(first) > 3
    worst = max(abs(first[step] - second[step]) for step in first)
    assert worst < noise, f"losses differ by {worst}"


def reports(run: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in read_lines(run / "predictions" / f"{split}.jsonl")]


def launched(run: Path) -> dict[str, Any]:
    return json.loads((run / "environment.json").read_text())["launch"]


TINY = {
    "transformer": "layers: 2, width: 32, heads: 4, feedforward: 32, feature_dropout: 0.0",
    "relational_memory": "layers: 1, encoder_layers: 1, width: 32, heads: 4, feedforward: 32, feature_dropout: 0.0",
    "cross_modal_memory": "layers: 1, encoder_layers: 1, width: 32, heads: 4, feedforward: 32, feature_dropout: 0.0, "
    "slots: 16, top_k: 4",
    "lstm_attention": "width: 32, word_width: 32, attention_width: 32",
}


@long
@pytest.mark.parametrize("decoder", TINY)
def test_every_decoder_learns_the_same_with_sharded_weights(exact_run: Callable[..., Path], decoder: str) -> None:
    part = f"model.decoder={{_delete_: true, name: {decoder}, dropout: 0.0, {TINY[decoder]}}}"
    short = ["train.epochs=2", "evaluate.every_epochs=2", "evaluate.max_length=24"]  # 8 steps, and words one by one
    keys = [part, *short, "optimizer.lr=1e-3", "optimizer.encoder_lr=1e-3"]  # noise grows with the steps' length
    one = exact_run(*keys)
    for strategy in ("zero3", "fsdp"):
        same_losses(one, exact_run(*keys, f"distributed.strategy={strategy}", processes=2))


@pytest.mark.parametrize("setup", [*SETUPS, *(pytest.param(setup, marks=long) for setup in LONG_SETUPS)], ids=str)
def test_a_run_gives_the_same_under_every_strategy_and_launcher(exact_run: Callable[..., Path], setup: Setup) -> None:
    one = exact_run()
    keys = [f"distributed.strategy={setup.strategy}", f"train.micro_batch_size={setup.micro_batch_size}"]
    other = exact_run(*keys, processes=setup.processes, by=setup.by, flags=setup.flags)
    same_losses(one, other)
    norms, others = records(one, "train/gradient_norm"), records(other, "train/gradient_norm")
    assert min(norms.values()) > 0.3, "clipping acts in every step"
    assert max(abs(norms[step] - others[step]) for step in norms) < NORM_NOISE
    assert records(one, "train/lr") == records(other, "train/lr")
    scores, other_scores = (json.loads((run / "scores.json").read_text()) for run in (one, other))
    assert scores == other_scores and scores["val"]["model"]["rouge_l"] > 0.3
    for name in ("val/bleu_4", "val/rouge_l", "val/cider"):
        assert records(one, name) == records(other, name) and len(records(one, name)) == 2
    for split, count in (("val", 7), ("test", 1)):
        assert reports(one, split) == reports(other, split)
        assert len({row["id"] for row in reports(other, split)}) == len(reports(other, split)) == count
    assert launched(other)["processes"] == setup.processes
    assert setup.processes == 1 or launched(other)["strategy"] == setup.strategy


@long
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_bf16_gives_the_same_within_its_precision(exact_run: Callable[..., Path], strategy: str) -> None:
    one = exact_run("train.precision=bf16")
    flags = ("--multi_gpu", "--mixed_precision", "bf16")
    other = exact_run("train.precision=bf16", f"distributed.strategy={strategy}", processes=2, flags=flags)
    assert launched(one)["precision"] == launched(other)["precision"] == "bf16"
    same_losses(one, other, noise=BF16_NOISE)
    with pytest.raises(AssertionError, match="losses differ"):
        same_losses(one, exact_run())  # bf16 differs, so it was not silently ignored


@long
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_a_frozen_encoder_does_not_change(exact_run: Callable[..., Path], strategy: str) -> None:
    one = exact_run("optimizer.encoder_lr=0")
    other = exact_run("optimizer.encoder_lr=0", f"distributed.strategy={strategy}", processes=2)
    same_losses(one, other)
    assert reports(one, "val") == reports(other, "val")
    states = [weights_of(run, step) for run in (one, other) for step in (3, 24)]
    frozen = [name for name in states[0] if name.startswith("weights/encoder.")]
    assert frozen and all(torch.equal(states[0][name], state[name]) for state in states for name in frozen)
    moved = "weights/decoder.embed_tokens.weight"
    assert moved in states[0] and not torch.equal(states[2][moved], states[3][moved])


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoints" / f"step-{step}" / "training.safetensors")


@long
@pytest.mark.parametrize("strategy", ["ddp", "zero3", "fsdp"])
def test_activation_checkpointing_changes_no_loss(exact_run: Callable[..., Path], strategy: str) -> None:
    keys = [f"distributed.strategy={strategy}", "distributed.activation_checkpointing=true"]
    other = exact_run(*keys, processes=2)
    assert launched(other)["activation_checkpointing"] is True
    same_losses(exact_run(), other)


# A low learning rate: only ddp keeps weights in channels_last, which sums in another order. That noise is 5e-7 in the
# first step, and batch normalization of four exams amplifies it with the rate.
BATCH_NORM = (
    "model.encoder={_delete_: true, name: resnet, depth: 10, width: 8}", "train.epochs=1", "train.ema_decay=null",
    "optimizer.lr=1e-4", "optimizer.encoder_lr=1e-4",
)  # fmt: skip


@long
def test_batch_normalization_on_two_processes_is_the_same_under_every_strategy(exact_run: Callable[..., Path]) -> None:
    runs = []
    for strategy in ("ddp", "zero2", "zero3", "fsdp"):
        keys = [*BATCH_NORM, f"distributed.strategy={strategy}"]
        runs.append(exact_run(*keys, processes=2))
    for run in runs[1:]:
        same_losses(runs[0], run)
        assert reports(runs[0], "val") == reports(run, "val")
    one, other = (weights_of(run, 4) for run in (runs[0], runs[-1]))
    statistics = [name for name in one if name.startswith("buffers/") and "running_mean" in name]
    assert statistics
    for name in statistics:
        torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=0)


# Every strategy on two processes, in one launch.


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What tests/support/strategies.py found, of each of two processes; and `one`, of ddp on this process."""
    folder = tmp_path_factory.mktemp("facts")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(
        [*start, str(ROOT / "tests" / "support" / "strategies.py"), str(folder)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    ranks = [json.loads((folder / f"facts-{rank}.json").read_text()) for rank in range(2)]
    found = {name: [rank[name] for rank in ranks] for name in ranks[0]}
    (folder / "one").mkdir()
    return found | {"one": [strategies.trained(strategies.Setting.make(folder / "one"), "ddp")]}


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(first - second) for first, second in zip(one, other, strict=True))


@pytest.mark.parametrize("name", strategies.NAMES)
def test_two_processes_train_like_one(facts: dict[str, list[dict[str, Any]]], name: str) -> None:
    [one] = facts["one"]
    assert min(one["norms"]) > 0.3, "clipping acts in every step"
    for found in facts[name]:
        assert apart(found["losses"], one["losses"]) < LOSS_NOISE
        assert apart(found["norms"], one["norms"]) < NORM_NOISE


@pytest.mark.parametrize("name", strategies.NAMES)
def test_every_process_generates_with_the_full_ema(facts: dict[str, list[dict[str, Any]]], name: str) -> None:
    for found in facts[name]:
        assert found["generates_with_ema"] and found["in_evaluation"] and found["saved_on_main_only"]


@pytest.mark.parametrize(("before", "now"), strategies.MOVES)
def test_a_state_is_loaded_bit_by_bit_and_trains_on(
    facts: dict[str, list[dict[str, Any]]], before: str, now: str
) -> None:
    """Under the same strategy with the very same losses, under another with float noise."""
    for found, straight in zip(facts[f"{before}-{now}"], facts[now]):
        assert found["loaded"] and found["changed"] == []
        assert apart(found["losses"], straight["losses"][strategies.SAVED :]) <= (0 if before == now else LOSS_NOISE)
        assert found["worst"] <= (0 if before == now else 2e-3)  # Adam makes steps of noise where a gradient is 0


# In process: one strategy on one process.


def made(folder: Path, *keys: str) -> tuple[Strategy, RunComponents, Recipe, BatchPlan]:
    few = ["data.dataset.exams=16", "data.dataset.val_exams=2", "data.dataset.test_exams=2", "distiller.topics=2"]
    recipe = load_recipe(SMOKE, [*few, f"data.cache_dir={folder / 'cache'}", *keys])
    accelerator = start_accelerator(recipe)
    components = build_components(recipe, accelerator, run=folder)
    batch_plan = BatchPlan.plan(recipe.train.batch_size, None, 0, 1)
    return (
        prepare(accelerator, recipe, components.task, batch_plan, lambda task: build_optimizer(recipe, task)),
        components,
        recipe,
        batch_plan,
    )


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("name: resnet, depth: 10, width: 8, norm: batch", True),
        ("name: resnet, depth: 10, width: 8, norm: batch, frozen_stages: 4", False),
        ("name: resnet, depth: 10, width: 8, norm: group", False),
        ("name: efficientnet_lite, norm: frozen", False),
    ],
)
def test_batch_normalization_gives_a_notice_if_a_step_is_split(tmp_path: Path, encoder: str, expected: bool) -> None:
    strategy, _, _, one_batch = made(tmp_path, f"model.encoder={{_delete_: true, {encoder}}}")
    assert strategy.batch_norm_notice(one_batch) is None
    for cut in (BatchPlan.plan(8, None, 0, 2), BatchPlan.plan(8, 4, 0, 1)):
        notice = strategy.batch_norm_notice(cut)
        assert (notice is not None) == expected
        assert not expected or "statistics of 4 exams, not of 8" in str(notice)


@long
def test_the_notice_is_printed(work: Path) -> None:
    keys = ["data.dataset.exams=8", "train.epochs=1", "evaluate.max_length=8", "distiller.topics=2"]
    done = launch(SMOKE, *keys, BATCH_NORM[0], "train.micro_batch_size=2", "run.name=notice", cwd=work)
    assert "notice: batch normalization uses statistics of 2 exams, not of 8" in done.stdout


def test_recomputed_blocks_have_the_same_dropout_and_update_batch_norm_once(tmp_path: Path) -> None:
    keys = [
        "model.encoder={_delete_: true, name: resnet, depth: 10, width: 8}", "model.decoder.dropout=0.3",
        "model.decoder.layers=2", "train.micro_batch_size=4",
    ]  # fmt: skip
    losses, ends = [], []
    for again in ("false", "true"):
        strategy, components, recipe, _ = made(tmp_path, *keys, f"distributed.activation_checkpointing={again}")
        weights = weights_at(recipe, 0, 1)
        strategy.task.train()
        batches = [[collate([components.exams["train"][i] for i in range(start, start + 4)])] for start in (0, 4, 8)]
        terms = []
        for number, group in enumerate(batches):
            torch.manual_seed(number)
            terms.append(train_step(strategy, group, weights)[0])
        losses.append(torch.stack(terms))
        ends.append({name: value.clone() for name, value in strategy.task.state_dict().items()})
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=0)
    assert [name for name in ends[0] if name.endswith("num_batches_tracked")]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(("again", "times"), [("false", 1), ("true", 2)])
def test_activation_checkpointing_recomputes_every_block_once(tmp_path: Path, again: str, times: int) -> None:
    encoder = "model.encoder={_delete_: true, name: resnet, depth: 10, width: 8}"
    keys = [encoder, "model.decoder.layers=2", f"distributed.activation_checkpointing={again}"]
    strategy, components, recipe, _ = made(tmp_path, *keys)
    calls: Counter[nn.Module] = Counter()
    for block in (*blocks_of(strategy.task.encoder), *blocks_of(strategy.task.decoder)):
        # Hooks of the block itself are not recomputed.
        inside = next(part for part in block.modules() if isinstance(part, (nn.Linear, nn.Conv2d)))
        calls[inside] = 0
        inside.register_forward_hook(lambda part, given, out: calls.update([part]))
    strategy.task.train()
    weights = weights_at(recipe, 0, 1)
    train_step(strategy, [collate([components.exams["train"][0], components.exams["train"][1]])], weights)
    assert len(calls) >= 4 and set(calls.values()) == {times}


class Two(nn.Module):
    """Two blocks that count how often each is run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5)) for _ in range(2)
        )
        self.runs = 0
        for layer in self.layers:
            layer[0].register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.runs += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_blocks_are_recomputed_only_if_there_is_a_gradient() -> None:
    torch.manual_seed(0)
    plain = Two()
    again = Two()
    again.load_state_dict(plain.state_dict())
    blocks = blocks_of(again)
    assert blocks == list(again.layers)
    for block in blocks:
        enable_activation_checkpointing(block)
    x = torch.randn(8, 4)
    for module in (plain, again):
        torch.manual_seed(1)
        module(x.clone().requires_grad_()).square().sum().backward()
    assert (plain.runs, again.runs) == (2, 4)
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for (name, one), (_, other) in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(one, other), name
    with torch.no_grad():
        again(x)
    assert again.runs == 6


def test_a_frozen_block_is_recomputed_in_eval_mode() -> None:
    """As a frozen language model, whose gradient reaches the images, or a decoder that has drawn without dropout."""
    torch.manual_seed(0)
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        module = Two().requires_grad_(False).eval()
        for block in blocks_of(module) if again else []:
            enable_activation_checkpointing(block)
        x = torch.randn(8, 4, requires_grad=True)
        total = module(x).square().sum()
        module.train()
        total.backward()
        assert all(part.training for part in module.modules())
        found.append((module.runs, x.grad, *module.buffers()))
    assert (found[0][0], found[1][0]) == (2, 4)
    assert all(torch.equal(one, other) for one, other in zip(found[0][1:], found[1][1:], strict=True))


def test_a_model_without_lists_has_no_blocks() -> None:
    assert blocks_of(nn.Sequential(nn.Linear(2, 2))) == []


@long
def test_a_run_with_a_deepspeed_file_gives_the_same(exact_run: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "buckets.json"
    path.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 20000, "overlap_comm": False}}))
    keys = ["distributed.strategy=zero2", f"distributed.deepspeed_config={path}"]
    other = exact_run(*keys, processes=2)
    same_losses(exact_run(), other)
    assert launched(other)["deepspeed_config"] == str(path)
