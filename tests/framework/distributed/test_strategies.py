"""Processes, strategies, accumulation and launchers change speed and memory, never a result; contradictions stop."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import ROOT, launch, records
from torch import nn

from framework.build import RunComponents, build_components, build_optimizer
from framework.data.loading import BatchPlan, collate
from framework.distributed.deepspeed_config import deepspeed_config
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.distributed.strategy import Strategy
from framework.models.blocks import blocks_of, enable_activation_checkpointing
from framework.recipe import Recipe, RecipeError, load_recipe
from framework.train_step import train_step, weights_at

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
# Float noise of other orders of adding up, over 24 steps of a loss that begins at 5.7; measured: 1e-6 and 4e-6.
LOSS_NOISE, NORM_NOISE = 1e-5, 1e-4
BF16_NOISE = 0.1  # a weight of bf16 has 8 bits
long = pytest.mark.long


@dataclass(frozen=True)
class Way:
    """A way to train the recipe of EXACT."""

    strategy: str
    micro_batch_size: int
    processes: int = 2
    by: str | None = None
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        by = self.by or "accelerate"
        return f"{self.processes}-{self.strategy}-of-{self.micro_batch_size}-{by}{''.join(self.flags)}"


# 8 exams a step: on two processes, micro-batches of 4 are the whole share, of 1 are four accumulated.
WAYS = [
    Way("fsdp", 1, by="torchrun"),  # zero3 on two processes is quickly held by test_resume.py
]
LONG_WAYS = [
    Way("zero3", 4, by="deepspeed"),
    Way("ddp", 2, processes=1),
    Way("ddp", 8, processes=1, by="accelerate"),
    Way("ddp", 1),
    Way("ddp", 4, by="torchrun"),
    Way("zero1", 4),
    Way("zero1", 1, by="torchrun"),
    Way("zero2", 1),
    Way("zero2", 4, flags=("--use_deepspeed", "--zero_stage", "2")),
    Way("zero3", 1),
    Way("zero3", 8, processes=1),
    Way("fsdp", 4),
    Way("fsdp", 8, processes=1),
    Way("fsdp", 1, processes=4),
    Way("zero1", 2, processes=4),
]


def same_losses(one: Path, other: Path, noise: float = LOSS_NOISE) -> None:
    first, second = (records(run, "train/loss") for run in (one, other))
    assert first.keys() == second.keys() and len(first) > 3
    worst = max(abs(first[step] - second[step]) for step in first)
    assert worst < noise, f"losses differ by {worst}"


def reports(run: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run / "predictions" / f"{split}.jsonl").read_text().splitlines()]


def told(run: Path) -> dict[str, Any]:
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
def test_every_decoder_learns_the_same_where_its_weights_are_cut(exact_run: Callable[..., Path], decoder: str) -> None:
    part = f"model.decoder={{_delete_: true, name: {decoder}, dropout: 0.0, {TINY[decoder]}}}"
    short = ["train.epochs=2", "evaluate.every_epochs=2", "evaluate.max_length=24"]  # 8 steps, and words one by one
    keys = [part, *short, "optimizer.lr=1e-3", "optimizer.encoder_lr=1e-3"]  # noise grows with the steps' length
    one = exact_run(*keys)
    for strategy in ("zero3", "fsdp"):
        same_losses(one, exact_run(*keys, f"distributed.strategy={strategy}", processes=2))


@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=long) for way in LONG_WAYS)], ids=str)
def test_a_run_gives_the_same_however_it_is_spread(exact_run: Callable[..., Path], way: Way) -> None:
    one = exact_run()
    keys = [f"distributed.strategy={way.strategy}", f"train.micro_batch_size={way.micro_batch_size}"]
    other = exact_run(*keys, processes=way.processes, by=way.by, flags=way.flags)
    same_losses(one, other)
    norms, others = records(one, "train/gradient_norm"), records(other, "train/gradient_norm")
    assert min(norms.values()) > 0.3, "clipping bites in every step"
    assert max(abs(norms[step] - others[step]) for step in norms) < NORM_NOISE
    assert records(one, "train/lr") == records(other, "train/lr")
    scores, other_scores = (json.loads((run / "scores.json").read_text()) for run in (one, other))
    assert scores == other_scores and scores["val"]["model"]["rouge_l"] > 0.3
    for name in ("val/bleu_4", "val/rouge_l", "val/cider"):
        assert records(one, name) == records(other, name) and len(records(one, name)) == 2
    for split, count in (("val", 7), ("test", 1)):
        assert reports(one, split) == reports(other, split)
        assert len({row["id"] for row in reports(other, split)}) == len(reports(other, split)) == count
    assert told(other)["processes"] == way.processes
    assert way.processes == 1 or told(other)["strategy"] == way.strategy


@long
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_bf16_gives_the_same_to_its_own_noise(exact_run: Callable[..., Path], strategy: str) -> None:
    one = exact_run("train.precision=bf16")
    flags = ("--multi_gpu", "--mixed_precision", "bf16")
    other = exact_run("train.precision=bf16", f"distributed.strategy={strategy}", processes=2, flags=flags)
    assert told(one)["precision"] == told(other)["precision"] == "bf16"
    same_losses(one, other, noise=BF16_NOISE)
    with pytest.raises(AssertionError, match="losses differ"):
        same_losses(one, exact_run())  # bf16 is another arithmetic, and was not dropped in silence


@long
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_a_frozen_encoder_stays_as_it_was(exact_run: Callable[..., Path], strategy: str) -> None:
    one = exact_run("optimizer.encoder_lr=0")
    other = exact_run("optimizer.encoder_lr=0", f"distributed.strategy={strategy}", processes=2)
    same_losses(one, other)
    assert reports(one, "val") == reports(other, "val")
    states = [weights_of(run, step) for run in (one, other) for step in (3, 24)]
    frozen = [name for name in states[0] if name.startswith("weights/encoder.")]
    assert frozen and all(torch.equal(states[0][name], state[name]) for state in states for name in frozen)
    moved = "weights/decoder.embed.weight"
    assert moved in states[0] and not torch.equal(states[2][moved], states[3][moved])


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoints" / f"step-{step}" / "training.safetensors")


@long
@pytest.mark.parametrize("strategy", ["ddp", "zero3", "fsdp"])
def test_computing_activations_again_changes_no_loss(exact_run: Callable[..., Path], strategy: str) -> None:
    keys = [f"distributed.strategy={strategy}", "distributed.activation_checkpointing=true"]
    other = exact_run(*keys, processes=2)
    assert told(other)["activation_checkpointing"] is True
    same_losses(exact_run(), other)


# A low rate: ddp alone keeps weights in channels_last, which adds up in another order. That is noise of 5e-7 in the
# first step, and batch normalization of four exams makes it grow with the rate.
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


@pytest.mark.parametrize(("norm", "says"), [("batch", True), ("group", False)])
def test_batch_normalization_is_told_where_a_step_is_cut(tmp_path: Path, norm: str, says: bool) -> None:
    encoder = f"model.encoder={{_delete_: true, name: resnet, depth: 10, width: 8, norm: {norm}}}"
    strategy, _, _, whole = made(tmp_path, encoder)
    assert strategy.batch_norm_notice(whole) is None
    for cut in (BatchPlan.plan(8, None, 0, 2), BatchPlan.plan(8, 4, 0, 1)):
        notice = strategy.batch_norm_notice(cut)
        assert (notice is not None) == says
        assert not says or "sees 4 exams at a time, not 8" in str(notice)


@long
def test_the_notice_is_printed(work: Path) -> None:
    keys = ["data.dataset.exams=8", "train.epochs=1", "evaluate.max_length=8", "distiller.topics=2"]
    done = launch(SMOKE, *keys, BATCH_NORM[0], "train.micro_batch_size=2", "run.name=notice", cwd=work)
    assert "notice: batch normalization sees 2 exams at a time, not 8" in done.stdout


def test_recomputed_blocks_draw_the_same_dropout_and_count_a_batch_once(tmp_path: Path) -> None:
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
def test_a_strategy_computes_blocks_a_second_time_where_it_is_told_to(tmp_path: Path, again: str, times: int) -> None:
    encoder = "model.encoder={_delete_: true, name: resnet, depth: 10, width: 8}"
    keys = [encoder, "model.decoder.layers=2", f"distributed.activation_checkpointing={again}"]
    strategy, components, recipe, _ = made(tmp_path, *keys)
    calls: Counter[nn.Module] = Counter()
    for block in (*blocks_of(strategy.task.encoder), *blocks_of(strategy.task.decoder)):
        # Inside the block, whose own hooks stand before what is computed again.
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


def test_blocks_are_run_again_where_there_is_a_gradient_alone() -> None:
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


def test_a_block_is_run_again_in_the_mode_that_it_was_in_also_when_it_is_frozen() -> None:
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


def test_a_model_without_blocks_cannot_be_told_to_compute_them_again() -> None:
    assert blocks_of(nn.Sequential(nn.Linear(2, 2))) == []


# Contradictions: what the launcher exports, what the recipe says, and what must be named.
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
ZERO2 = ["distributed.strategy=zero2"]
FSDP, BY_FSDP = {"ACCELERATE_USE_FSDP": "true"}, ["distributed.strategy=fsdp"]
CONTRADICTIONS: list[tuple[dict[str, str], Sequence[str], str]] = [
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, [], r"gradient_accumulation_steps=4.*train\.batch_size 8"),
    ({"ACCELERATE_MIXED_PRECISION": "bf16"}, ["train.precision=fp32"], r"mixed_precision=bf16.*'fp32', here fp32"),
    ({"ACCELERATE_MIXED_PRECISION": "fp16"}, ["train.precision=bf16"], r"mixed_precision=fp16.*'bf16'"),
    ({"ACCELERATE_MIXED_PRECISION": "bf16"}, [], r"mixed_precision=bf16.*'auto', here fp32"),
    (DEEPSPEED, [], r"asks for zero2.*distributed\.strategy is 'auto'"),
    (DEEPSPEED, ["distributed.strategy=zero3"], r"asks for zero2.*'zero3'"),
    ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, ZERO2, r"asks for zero0.*'zero2'"),
    ({**DEEPSPEED, "ACCELERATE_USE_DEEPSPEED": "True"}, [], r"asks for zero2.*'auto'"),
    (FSDP, ["distributed.strategy=ddp"], r"asks for fsdp.*'ddp'"),
    ({"FSDP_OFFLOAD_PARAMS": "true", **FSDP}, BY_FSDP, r"fsdp_offload_params, but distributed\.offload is 'none'"),
    (
        {"FSDP_ACTIVATION_CHECKPOINTING": "true", **FSDP},
        BY_FSDP,
        r"fsdp_activation_checkpointing, but distributed\.activation_checkpointing is false",
    ),
    ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "mine.json", **DEEPSPEED}, ZERO2, r"mine\.json.*distributed\.deepspeed_conf"),
    ({"ACCELERATE_GRADIENT_CLIPPING": "0.5", **DEEPSPEED}, ZERO2, r"gradient_clipping=0\.5.*train\.clip is 1\.0"),
    (
        {"ACCELERATE_GRADIENT_CLIPPING": "0.5", **DEEPSPEED},
        [*ZERO2, "train.max_grad_norm=null"],
        r"=0\.5.*clip is None",
    ),
    ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu", **DEEPSPEED}, ZERO2, r"offload \(optimizer\).*'none'"),
    ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu", **DEEPSPEED}, ZERO2, r"offload \(all\).*'none'"),
    ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, [], r"torch\.compile \(ACCELERATE_DYNAMO_BACKEND=INDUCTOR\)"),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, [], r"Megatron-LM"),
    ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, [], r"parallelism"),
]


@pytest.mark.parametrize(("told", "keys", "message"), CONTRADICTIONS)
def test_a_launcher_that_contradicts_the_recipe_is_refused_with_both_values(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], keys: Sequence[str], message: str
) -> None:
    recipe = load_recipe(SMOKE, keys)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message):
        start_accelerator(recipe)


def test_all_contradictions_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(RecipeError, match=r"(?s)accumulation_steps=4.*mixed_precision=bf16"):
        start_accelerator(load_recipe(SMOKE))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["train.precision=fp16"], r"fp16 needs a GPU"),
        (["distributed.strategy=zero2", "distributed.offload=optimizer"], r"'optimizer' moves tensors from a GPU"),
    ],
)
def test_what_a_machine_without_gpu_cannot_do_is_refused(keys: Sequence[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        start_accelerator(load_recipe(SMOKE, keys))


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_zero_without_deepspeed_is_refused_with_the_ways_out(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    monkeypatch.setattr("framework.distributed.launch.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=rf"{strategy} needs the package deepspeed.*sonoscribe\[deepspeed\].*fsdp"):
        start_accelerator(load_recipe(SMOKE, [f"distributed.strategy={strategy}"]))


def test_what_the_launcher_says_alike_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MIXED_PRECISION": "no", "GRADIENT_ACCUMULATION_STEPS": "1", "DYNAMO_BACKEND": "NO"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    accelerator = start_accelerator(load_recipe(SMOKE, ["train.precision=fp32"]))
    assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == ("no", 1)


def test_a_contradiction_stops_a_launch_before_anything_is_written(work: Path) -> None:
    flags = ["--use_deepspeed", "--zero_stage", "2"]
    done = launch(SMOKE, "run.name=contradicts", cwd=work, processes=2, by="accelerate", flags=flags, check=False)
    assert done.returncode != 0
    assert "asks for zero2, but distributed.strategy is 'auto'" in done.stderr
    assert not (work / "runs" / "smoke" / "contradicts").exists()


@pytest.mark.parametrize(
    ("flags", "key", "message"),
    [
        # Of the first, what is exported is the same with no flag at all; of the second, nothing is.
        (["--mixed_precision", "no"], "train.precision=bf16", "mixed_precision=no, but train.precision is 'bf16'"),
        (["--gradient_accumulation_steps", "4"], "train.micro_batch_size=4", "sets gradient_accumulation_steps=4, but"),
    ],
)
def test_a_flag_that_the_launcher_does_not_pass_on_is_heard_all_the_same(
    work: Path, flags: list[str], key: str, message: str
) -> None:
    done = launch(SMOKE, key, "run.name=flagged", cwd=work, by="accelerate", flags=flags, check=False)
    assert done.returncode != 0 and message in done.stderr, done.stderr
    assert not (work / "runs" / "smoke" / "flagged").exists()


def test_processes_that_accelerate_leaves_out_without_a_word_are_asked_for(work: Path) -> None:
    flags = ["--mixed_precision", "no"]  # and no --multi_gpu
    done = launch(SMOKE, "run.name=lonely", cwd=work, processes=2, by="accelerate", flags=flags, check=False)
    assert done.returncode != 0
    assert "asked for 2 processes and started one" in done.stderr and "torchrun --nproc_per_node 2" in done.stderr
    assert not (work / "runs" / "smoke" / "lonely").exists()


@pytest.mark.long
def test_a_batch_that_does_not_divide_over_the_processes_names_the_nearest(work: Path) -> None:
    done = launch(SMOKE, "train.batch_size=7", "run.name=odd", cwd=work, processes=2, check=False)
    assert done.returncode != 0 and "The nearest sizes that do: 6, 8" in done.stderr


# DeepSpeed's JSON.


def config_of(folder: Path, content: Any, *keys: str) -> dict[str, Any]:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    recipe = load_recipe(SMOKE, ["distributed.strategy=zero2", f"distributed.deepspeed_config={path}", *keys])
    return deepspeed_config(recipe, BatchPlan.plan(8, 2, 0, 2))


def test_a_deepspeed_file_adds_and_the_recipe_has_the_say(tmp_path: Path) -> None:
    found = config_of(
        tmp_path,
        {
            "zero_optimization": {"stage": 2, "reduce_bucket_size": 12345},
            "train_batch_size": 8,
            "wall_clock_breakdown": True,
        },
    )
    assert found["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 12345, "compute_grad_norm": True}
    assert found["wall_clock_breakdown"] is True
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [found[name] for name in sizes] == [8, 2, 2] and found["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_batch_size": 16}, r"train_batch_size is 16, but the recipe makes it 8"),
        ({"train_micro_batch_size_per_gpu": 4}, r"train_micro_batch_size_per_gpu is 4, .* 2"),
        ({"gradient_clipping": 0.5}, r"gradient_clipping is 0\.5, but the recipe makes it 1\.0"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage is 3, but the recipe makes it 2"),
        ({"zero_optimization": 2}, r"zero_optimization: found 2, expected an object"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, r"reduce_bucket_size is 'auto'"),
        ({"train_batch_size": "auto"}, r"train_batch_size is 'auto'"),
        ({"zero_optimization": {"sub": [{"x": "auto"}]}}, r"sub.*is 'auto'"),
        ({"bf16": {"enabled": True}}, r"'bf16' belongs in the recipe: train\.precision"),
        ({"optimizer": {"type": "Adam"}}, r"'optimizer' belongs in the recipe: optimizer"),
        ({"scheduler": {}}, r"'scheduler' belongs in the recipe: schedule"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, r"'data_types' belongs in the recipe: train\.precision"),
        ({"communication_data_type": "fp16"}, r"'communication_data_type' belongs in the recipe: train\.precision"),
        ("[1]", r"found list, expected an object"),
        ("{", r"cannot be read as JSON"),
    ],
)
def test_a_deepspeed_file_that_says_what_the_recipe_owns_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        config_of(tmp_path, content)


@pytest.mark.parametrize(
    ("part", "device", "asked"),
    [
        ("offload_optimizer", "cpu", "none"),
        ("offload_param", "nvme", "none"),
        ("offload_param", "cpu", "optimizer"),
        ("offload_optimizer", "none", "optimizer"),
    ],
)
def test_a_deepspeed_file_that_moves_tensors_elsewhere_than_the_recipe_is_refused(
    tmp_path: Path, part: str, device: str, asked: str
) -> None:
    says = rf"zero_optimization\.{part}\.device is '{device}', but distributed\.offload is '{asked}'"
    with pytest.raises(RecipeError, match=says):
        config_of(tmp_path, {"zero_optimization": {part: {"device": device}}}, f"distributed.offload={asked}")


def test_a_deepspeed_file_may_say_how_what_the_recipe_moves_is_moved(tmp_path: Path) -> None:
    pinned = {"device": "cpu", "pin_memory": True}
    content = {"zero_optimization": {"offload_optimizer": pinned}}
    found = config_of(tmp_path, content, "distributed.offload=optimizer")
    assert found["zero_optimization"]["offload_optimizer"] == pinned


def test_a_deepspeed_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = load_recipe(SMOKE, ["distributed.strategy=zero2", f"distributed.deepspeed_config={tmp_path / 'no.json'}"])
    with pytest.raises(RecipeError, match=r"no\.json: no such file"):
        deepspeed_config(recipe, BatchPlan.plan(8, 2, 0, 2))


@long
def test_a_run_with_a_deepspeed_file_gives_the_same(exact_run: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "buckets.json"
    path.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 20000, "overlap_comm": False}}))
    keys = ["distributed.strategy=zero2", f"distributed.deepspeed_config={path}"]
    other = exact_run(*keys, processes=2)
    same_losses(exact_run(), other)
    assert told(other)["deepspeed_config"] == str(path)
