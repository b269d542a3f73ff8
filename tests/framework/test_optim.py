"""What is frozen does not move, and what learns does so at the rate that it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import ROOT, problem, records
from torch import Tensor, nn

from framework.build import RunComponents, build_components, build_optimizer, build_plugin
from framework.data.loading import BatchPlan, collate
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.distributed.strategy import Strategy
from framework.optim import freeze, parameter_groups
from framework.recipe import load_recipe
from framework.task import ReportTask
from framework.train_step import train_step

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
FEW = ["data.dataset.exams=8", "data.dataset.val_exams=1", "data.dataset.test_exams=1", "distiller.topics=2"]
RESNET = "model.encoder={_delete_: true, name: resnet, depth: 10, width: 8}"  # with batch normalization


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def made(cache: Path, tmp_path: Path) -> Callable[..., tuple[Strategy, RunComponents]]:
    def make(*keys: str) -> tuple[Strategy, RunComponents]:
        recipe = load_recipe(SMOKE, [*FEW, RESNET, f"data.cache_dir={cache}", *keys])
        accelerator = start_accelerator(recipe)
        components = build_components(recipe, accelerator, run=tmp_path)
        batch_plan = BatchPlan.plan(8, None, 0, 1)
        return prepare(
            accelerator, recipe, components.task, batch_plan, lambda task: build_optimizer(recipe, task)
        ), components

    return make


def steps(strategy: Strategy, components: RunComponents, count: int) -> None:
    batch = collate([components.exams["train"][number] for number in range(8)]).to("cpu")
    strategy.task.train()
    for _ in range(count):
        train_step(strategy, [batch], torch.ones(len(components.task.losses)))


def values(strategy: Strategy) -> dict[str, Tensor]:
    """Weights, and statistics of batch normalization."""
    state = strategy.task.state_dict()
    return {name: value.clone() for name, value in state.items() if name != "losses.global_semantic.word_vectors_WD"}


@pytest.mark.parametrize(
    ("key", "frozen"),
    [
        ("train.freeze=[encoder, decoder.embed_tokens]", ("encoder.", "decoder.embed_tokens.")),
        ("optimizer.encoder_lr=0", ("encoder.",)),
        ("optimizer.group_lrs={encoder: 0, encoder.position_VD: 1e-3}", ("encoder.backbone.",)),
        ("train.freeze=[encoder.backbone.embedder, losses.topic]", ("encoder.backbone.embedder.", "losses.topic.")),
    ],
)
def test_frozen_parts_keep_every_bit_and_their_statistics_while_the_rest_learns(
    made: Callable[..., tuple[Strategy, RunComponents]], key: str, frozen: tuple[str, ...]
) -> None:
    strategy, components = made(key, "train.ema_decay=0.9", "model.decoder.dropout=0.2")
    before = values(strategy)
    steps(strategy, components, 2)
    after = values(strategy)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if not name.startswith(frozen)}
    assert any("running_mean" in name for name in before if name.startswith(frozen)) or "losses" in frozen[0]
    learned = {id(weight) for group in strategy.optimizer.param_groups for weight in group["params"]}
    for name, weight in strategy.task.named_parameters():
        assert weight.requires_grad == (id(weight) in learned) == (name in moved), name
    assert set(strategy.ema) == {name for name, _ in strategy.task.named_parameters()} & moved
    with strategy.full_params_model() as task:
        assert not task.training
    assert strategy.task.training and not strategy.task.get_submodule(frozen[0].rstrip(".")).training


def test_the_rest_learns_the_same_whether_the_encoder_is_frozen_by_name_or_by_rate(
    made: Callable[..., tuple[Strategy, RunComponents]],
) -> None:
    found = []
    for key in ("train.freeze=[encoder]", "optimizer.encoder_lr=0"):
        strategy, components = made(key)
        steps(strategy, components, 2)
        found.append(values(strategy))
    assert not [name for name in found[0] if not torch.equal(found[0][name], found[1][name])]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 2), nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("prefixes", "rates", "code", "hint"),
    [
        (["decoder.weigh"], {}, "unknown-name", "'decoder.weight'"),
        (["encoder.nope"], {}, "unknown-name", "'encoder'"),
        (["encoder", "decoder"], {}, "conflicting-settings", ""),
        (["decoder"], {"encoder": 0.0}, "conflicting-settings", ""),
    ],
)
def test_unknown_parts_and_a_task_without_trainable_parameters_are_refused(
    prefixes: list[str], rates: dict[str, float], code: str, hint: str
) -> None:
    with problem(code, "train.freeze") as found:
        freeze(Two(), prefixes, rates)
    assert hint in found[0].hint


def test_a_recipe_freezes_parts_that_a_model_can_have() -> None:
    with problem("unknown-name", "train.freeze.0") as found:
        load_recipe("smoke", ["train.freeze=[encodr, losses.topic, decoder.embed_tokens]"])
    assert len(found) == 1 and found[0].hint.startswith("Did you mean 'encoder'? Known: encoder, decoder, losses.")
    assert load_recipe("smoke", ["train.weighting=uncertainty", "train.freeze=[weighting]"]).train.freeze == [
        "weighting"
    ]
    with problem("unknown-name", "train.freeze"):
        load_recipe("smoke", ["train.freeze=[weighting]"])


class Staged(nn.Module):
    """Three stages of an encoder, and a decoder."""

    def __init__(self, stages: Callable[[Any], list[list[nn.Parameter]]] | None) -> None:
        super().__init__()
        self.encoder: Any = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
        self.decoder = nn.Linear(2, 2)
        if stages is not None:
            self.encoder.stages = lambda: stages(self.encoder)


def rates(task: nn.Module, *settings: Any) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    groups = parameter_groups(task, *settings)
    assert groups[-1].name == "rest", "the rate of the last group is logged"
    return {names[id(parameter)]: group.lr for group in groups for parameter in group.parameters}


def test_each_stage_of_the_encoder_has_a_lower_rate_than_the_next() -> None:
    task = Staged(lambda encoder: [list(layer.parameters()) for layer in encoder])
    found = rates(task, 1.0, 0.5, {"encoder.1.bias": 0.3}, 0.1)
    assert found == pytest.approx(
        {
            "encoder.0.weight": 0.005, "encoder.0.bias": 0.005, "encoder.1.weight": 0.05, "encoder.1.bias": 0.3,
            "encoder.2.weight": 0.5, "encoder.2.bias": 0.5, "decoder.weight": 1.0, "decoder.bias": 1.0,
        }
    )  # fmt: skip
    assert rates(task, 2.0, None, None, 0.5)["encoder.0.weight"] == 0.5, (
        "without a rate of its own, by that of the rest"
    )
    assert set(rates(task, 1.0, 0.5, None, 1.0).values()) == {0.5, 1.0}


@pytest.fixture
def tied() -> ReportTask:
    """A GPT-2, whose embedding is its output layer too."""
    config = "{n_embd: 8, n_layer: 1, n_head: 1, n_positions: 64}"
    decoder = f"model.decoder={{_delete_: true, name: hf_causal, architecture: gpt2, config: {config}}}"
    recipe = load_recipe("smoke", [decoder])
    known = {"vocabulary_size": 9, "feature_width": 4, "max_length": 9, "vocabulary": None, "hf_config": None}
    return ReportTask(
        nn.Linear(2, 4), build_plugin(recipe, "decoder", recipe.model.decoder, **known), {"head": nn.Linear(2, 2)}
    )


EMBED, HEAD = "decoder.model.transformer.wte", "decoder.model.lm_head"


def test_a_tied_weight_is_trained_or_frozen_by_either_name(tied: ReportTask) -> None:
    weight = tied.get_parameter(f"{EMBED}.weight")
    assert weight is tied.get_parameter(f"{HEAD}.weight")
    for part in (EMBED, HEAD, f"{HEAD}.weight"):
        for asked in ({part: 0.25}, {"decoder": 0.5, part: 0.25}):
            assert rates(tied, 1.0, None, asked)[f"{EMBED}.weight"] == 0.25
    assert rates(tied, 1.0, None, {EMBED: 0.5, HEAD: 0.5})[f"{EMBED}.weight"] == 0.5
    freeze(tied, [HEAD], {"decoder": 1.0})
    assert [name for name, each in tied.named_parameters() if not each.requires_grad] == [f"{EMBED}.weight"]


def test_a_tied_weight_with_two_rates_is_refused(tied: ReportTask) -> None:
    with problem("conflicting-settings", "optimizer") as found:
        rates(tied, 1.0, None, {HEAD: 0.1, EMBED: 0.5})
    assert f"0.1 by {HEAD}" in found[0].found and f"0.5 by {EMBED}" in found[0].found
    with problem("conflicting-settings", "optimizer"):
        freeze(tied, [], {HEAD: 0.1, EMBED: 0.0})
    with problem("conflicting-settings", "train.freeze"):
        freeze(tied, [HEAD], {EMBED: 0.5})


@pytest.mark.parametrize(
    "stages", [None, lambda encoder: [list(encoder[0].parameters())]], ids=["no stages", "not all parameters"]
)
def test_layer_decay_needs_an_encoder_whose_stages_cover_all_parameters(stages: Any) -> None:
    with problem("unsupported", "optimizer.layer_decay"):
        parameter_groups(Staged(stages), 1.0, None, None, 0.9)
    parameter_groups(Staged(stages), 1.0)


def test_each_learning_rate_of_a_run_follows_the_schedule(
    made: Callable[..., tuple[Strategy, RunComponents]],
) -> None:
    strategy, _ = made("optimizer.lr=1", "optimizer.encoder_lr=0.8", "optimizer.layer_decay=0.5")
    strategy.set_lr(0.1)
    found = {
        name: group["lr"]
        for name, weight in strategy.task.named_parameters()
        for group in strategy.optimizer.param_groups
        if any(weight is other for other in group["params"])
    }
    stages = [f"encoder.backbone.encoder.stages.{stage}." for stage in range(4)]
    for below, stage in enumerate(reversed(["encoder.backbone.embedder.", *stages])):
        of_stage = [rate for name, rate in found.items() if name.startswith(stage)]
        assert of_stage and of_stage == pytest.approx([0.08 * 0.5**below] * len(of_stage))
    assert found["encoder.position_VD"] == pytest.approx(0.08)
    assert found["decoder.embed_tokens.weight"] == pytest.approx(0.1)
    assert strategy.optimizer.param_groups[-1]["lr"] == pytest.approx(0.1)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_two_processes_freeze_and_decay_rates_as_one_does(exact_run: Callable[..., Path], strategy: str) -> None:
    """Of the blocks that are cut and gathered, `decoder.layers.0` and the encoder's are frozen in part."""
    keys = (
        "train.freeze=[decoder.embed_tokens, decoder.layers.0.self_attn, decoder.layers.0.cross_attn.q_proj.bias, "
        "encoder.layers.0]",
        "optimizer.layer_decay=0.5",
    )
    one = exact_run(*keys)
    other = exact_run(*keys, f"distributed.strategy={strategy}", processes=2)
    first, second = records(one, "train/loss"), records(other, "train/loss")
    assert first.keys() == second.keys() and max(abs(first[step] - second[step]) for step in first) < 1e-4
