"""Checkpoints: written atomically, verified before use, complete for resuming."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import ROOT, problem
from safetensors.torch import load_file
from torch import Tensor, nn

from framework.build import RunComponents, build_components, build_optimizer
from framework.checkpoint.export import (
    ModelError,
    ModelTexts,
    load_weights,
    put_weights,
    verify_model,
    write_model,
)
from framework.checkpoint.format import (
    CheckpointError,
    RetentionPolicy,
    SavedState,
    Snapshot,
    TrainState,
    checkpoints_of,
    clear_unfinished,
    ranked,
    read_train_state,
    verify_checkpoint,
    write_checkpoint,
)
from framework.data.loading import BatchPlan, collate
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.distributed.strategy import Strategy
from framework.recipe import PortableRecipe, load_recipe
from framework.train_step import train_step

KEEP = RetentionPolicy(keep_last=2, keep_best=1, higher_is_better=True)


class Tokenizer:
    """What an exported model needs of one."""

    def save(self, path: Path) -> None:
        path.write_text("[]")


def save(
    folder: Path, step: int, kept: dict[str, float] | None = None, best: int | None = None, **metadata: Any
) -> Path:
    weights = {"encoder.weight": torch.full((3,), float(step)), "losses.head": torch.ones(2)}
    state = {f"weights/{name}": value for name, value in weights.items()}
    train_state = TrainState(step=step, val_scores=kept or {}, best_step=best)
    texts = ModelTexts(Tokenizer(), PortableRecipe("name: x\n"), metadata)
    return write_checkpoint(folder, Snapshot(train_state, state, weights, texts), KEEP)


def test_a_checkpoint_loads_as_it_was_written(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 3, {"step-3": 0.25}, best=3)
    assert verify_checkpoint(path) is None
    assert read_train_state(path) == TrainState(step=3, val_scores={"step-3": 0.25}, best_step=3)
    state = SavedState(path)
    assert sorted(state) == ["weights/encoder.weight", "weights/losses.head"] and len(state) == 2
    assert torch.equal(state["weights/encoder.weight"], torch.full((3,), 3.0))
    assert set(load_file(path / "model" / "model.safetensors")) == {"encoder.weight"}, "a model has no loss in it"


def test_the_last_and_the_best_are_kept_and_the_best_model_is_published(tmp_path: Path) -> None:
    folder, kept = tmp_path / "checkpoints", {}
    for step, value in ((1, 0.1), (2, 0.9), (3, 0.2), (4, 0.3)):
        kept[f"step-{step}"] = value
        save(folder, step, kept, best=min(step, 2))
    assert [path.name for path in checkpoints_of(folder)] == ["step-4", "step-3", "step-2"]
    assert (folder / "latest").read_text().strip() == "step-4" and (folder / "best").read_text().strip() == "step-2"
    assert load_file(tmp_path / "model" / "model.safetensors")["encoder.weight"][0] == 2
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_checkpoints_share_equal_metadata_and_never_a_damaged_file(tmp_path: Path) -> None:
    paths = [save(tmp_path / "checkpoints", step, patients={"train": ["a"]}) for step in (1, 2)]
    first, second = (path / "model" / "patients.json" for path in paths)
    assert first.samefile(second) and verify_checkpoint(paths[1]) is None
    second.write_text("[]")
    third = save(tmp_path / "checkpoints", 3, patients={"train": ["a"]})
    assert not (third / "model" / "patients.json").samefile(second) and verify_checkpoint(third) is None


def test_a_step_that_is_saved_twice_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 2)
    path = save(tmp_path / "checkpoints", 2, {"step-2": 0.5}, best=2)
    assert verify_checkpoint(path) is None and read_train_state(path).val_scores == {"step-2": 0.5}
    assert checkpoints_of(tmp_path / "checkpoints") == [path]


def faults(checkpoint: Path) -> tuple[str, str] | None:
    """Code and place of what is wrong with a checkpoint."""
    found = verify_checkpoint(checkpoint)
    return None if found is None else (found.code, found.place)


FILES = ["training.safetensors", "trainer.json", "model/model.safetensors", "model/tokenizer.json", "model/recipe.yaml",
         "model/manifest.json"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_a_truncated_file_and_a_missing_file_are_found(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert faults(path) == ("damaged-checkpoint", str(path / name))
    (path / name).write_bytes(whole[:-1])
    assert faults(path) == ("damaged-checkpoint", str(path / name))
    (path / name).unlink()
    assert faults(path) == ("damaged-checkpoint", str(path / name))
    (path / name).write_bytes(whole)
    assert verify_checkpoint(path) is None


@pytest.mark.parametrize("content", ["{", "[1]", '{"trainer.json": 3}', '{"trainer.json": ["x", "y"]}', "\xff"])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").write_bytes(content.encode("latin-1"))
    assert faults(path) == ("damaged-checkpoint", str(path / "manifest.json"))


def test_a_manifest_that_points_outside_is_damaged(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 1)
    (tmp_path / "secret").write_text("x")
    listed = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**listed, "../../secret": [1, "0"]}))
    assert faults(path) == ("damaged-checkpoint", str(path / "manifest.json"))


def test_a_manifest_without_the_state_is_refused_as_another_version(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    listed = json.loads((path / "manifest.json").read_text())
    del listed["training.safetensors"]
    (path / "manifest.json").write_text(json.dumps(listed))
    assert faults(path) == ("wrong-version", str(path))


@pytest.mark.parametrize("changed", [{"format": 1}, {"more": 1}])
def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, changed: dict[str, int]) -> None:
    path = save(tmp_path, 1)
    content = json.loads((path / "trainer.json").read_text())
    (path / "trainer.json").write_text(json.dumps({**content, **changed}))
    with problem("wrong-version", str(path), CheckpointError):
        read_train_state(path)


@pytest.mark.parametrize("changed", [{"step": "1"}, {"launch": 7}, {"val_scores": {"step-1": "x"}}, {"recipe": None}])
def test_a_state_with_values_of_other_types_is_damaged(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = save(tmp_path, 1)
    content = json.loads((path / "trainer.json").read_text())
    (path / "trainer.json").write_text(json.dumps({**content, "best_score": float("nan")}))
    assert math.isnan(read_train_state(path).best_score or 0)
    (path / "trainer.json").write_text(json.dumps({**content, **changed}))
    with problem("damaged-file", str(path / "trainer.json")) as found:
        read_train_state(path)
    assert next(iter(changed)) in found[0].found
    (path / "trainer.json").write_text("{")
    with problem("damaged-file", str(path / "trainer.json")):
        read_train_state(path)


def test_weights_of_other_shapes_are_refused_with_their_names(tmp_path: Path) -> None:
    task = nn.ModuleDict({"encoder": nn.Linear(2, 3)})
    weights = {**nn.ModuleDict({"encoder": nn.Linear(2, 4)}).state_dict()}
    with problem("does-not-fit", str(tmp_path)) as found:
        put_weights(weights, task, tmp_path)
    assert "encoder.weight, encoder.bias" in found[0].found


def test_an_interrupted_save_is_no_checkpoint_and_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step-2.part" / "model").mkdir(parents=True)
    (tmp_path / ".step-1.before").mkdir()
    (tmp_path / "step-3").mkdir()  # without a manifest
    assert checkpoints_of(tmp_path) == [tmp_path / "step-1"]
    clear_unfinished(tmp_path)
    assert not list(tmp_path.glob(".step-*")) and verify_checkpoint(tmp_path / "step-1") is None


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with problem("damaged-file", "model.safetensors", ModelError):
        load_weights(tmp_path, nn.Linear(3, 2))


# A strategy's state, through a checkpoint into another.


def made(folder: Path, *keys: str, tied: bool = False) -> tuple[Strategy, RunComponents]:
    """Of the smoke recipe on one process.

    Args:
        tied: the decoder reads and writes words with one weight.
    """
    few = ["data.dataset.exams=16", "data.dataset.val_exams=2", "data.dataset.test_exams=2", "distiller.topics=2"]
    words = [*few, "train.ema_decay=0.9", f"data.cache_dir={folder / 'cache'}", *keys]
    recipe = load_recipe(ROOT / "recipes" / "smoke.yaml", words)
    accelerator = start_accelerator(recipe)
    components = build_components(recipe, accelerator, run=folder)
    if tied:
        components.task.decoder.lm_head.weight = components.task.decoder.embed_tokens.weight
    batch_plan = BatchPlan.plan(8, None, 0, 1)
    return prepare(
        accelerator, recipe, components.task, batch_plan, lambda task: build_optimizer(recipe, task)
    ), components


def steps(strategy: Strategy, components: RunComponents, *numbers: int) -> Tensor:
    """Losses of some steps, each with a rate and random numbers of its own."""
    weights, losses = torch.ones(len(components.task.losses)), []
    strategy.task.train()
    for number in numbers:
        torch.manual_seed(number)
        strategy.set_lr(1 / (1 + number))
        batch = collate(
            [components.exams["train"][place] for place in range(4 * (number % 3), 4 * (number % 3) + 4)]
        ).to("cpu")
        losses.append(train_step(strategy, [batch], weights).terms_L)
    return torch.stack(losses)


def saved(strategy: Strategy, components: RunComponents, folder: Path) -> Path:
    state, texts = strategy.state(), ModelTexts(components.tokenizer, PortableRecipe("name: x\n"))
    train_state = TrainState(step=strategy.steps)
    return write_checkpoint(folder, Snapshot(train_state, state, strategy.export_weights(state), texts), KEEP)


@pytest.mark.parametrize("extra", ["optimizer.amsgrad=false", "optimizer.amsgrad=true", "optimizer.encoder_lr=0"])
def test_a_loaded_checkpoint_trains_like_the_saved_one(tmp_path: Path, extra: str) -> None:
    keys = [extra, "model.decoder.dropout=0.2"]
    strategy, components = made(tmp_path, *keys)
    steps(strategy, components, 0, 1, 2)
    path = saved(strategy, components, tmp_path / "run")
    other, other_components = made(tmp_path, *keys)
    other.load(SavedState(path), read_train_state(path).step)
    assert torch.equal(steps(strategy, components, 3, 4), steps(other, other_components, 3, 4))
    one, two = strategy.state(), other.state()
    assert one.keys() == two.keys() and {name.split("/")[0] for name in one} >= {"weights", "ema", "optimizer"}
    assert not [name for name in one if not torch.equal(one[name], two[name])]
    assert not torch.equal(one["ema/decoder.embed_tokens.weight"], one["weights/decoder.embed_tokens.weight"])


def test_a_state_is_a_copy(tmp_path: Path) -> None:
    strategy, components = made(tmp_path)
    steps(strategy, components, 0)
    state = strategy.state()
    before = {name: value.clone() for name, value in state.items()}
    steps(strategy, components, 1)
    assert not [name for name in state if not torch.equal(state[name], before[name])]


def test_the_exported_model_is_the_ema_and_equals_the_validated_one(tmp_path: Path) -> None:
    strategy, components = made(tmp_path)
    steps(strategy, components, 0, 1)
    state = strategy.state()
    exported = strategy.export_weights(state)
    with strategy.full_params_model() as task:
        for name, weight in task.state_dict().items():
            assert torch.equal(exported[name], weight), name
    learned = "decoder.embed_tokens.weight"
    assert torch.equal(exported[learned], state[f"ema/{learned}"])


def test_an_ema_that_the_checkpoint_lacks_starts_at_the_weights(tmp_path: Path) -> None:
    strategy, components = made(tmp_path, "train.ema_decay=null")
    steps(strategy, components, 0, 1)
    other, _ = made(tmp_path)
    other.load(SavedState(saved(strategy, components, tmp_path / "run")), strategy.steps)
    state = other.state()
    averages = [name for name in state if name.startswith("ema/")]
    assert averages
    assert all(torch.equal(state[name], state[name.replace("ema/", "weights/", 1)]) for name in averages)


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "fsdp"])
def test_tied_weights_are_one_while_training_and_two_in_the_exported_model(tmp_path: Path, strategy: str) -> None:
    read, write = "decoder.embed_tokens.weight", "decoder.lm_head.weight"
    keys = [f"distributed.strategy={strategy}"]
    trained, components = made(tmp_path, *keys, tied=True)
    steps(trained, components, 0, 1)
    state = trained.state()
    assert f"weights/{read}" in state and not [name for name in state if name.endswith(write)]
    exported = trained.export_weights(state)
    assert torch.equal(exported[read], state[f"ema/{read}"]) and torch.equal(exported[write], exported[read])
    with trained.full_params_model() as task:
        assert task.decoder.lm_head.weight is task.decoder.embed_tokens.weight
        assert torch.equal(task.decoder.embed_tokens.weight, exported[read])
    write_model(tmp_path / "model", exported, ModelTexts(components.tokenizer, PortableRecipe("name: x\n")))
    _, fresh = made(tmp_path, tied=True)
    assert not torch.equal(fresh.task.decoder.embed_tokens.weight, exported[read])
    load_weights(tmp_path / "model", fresh.task)
    assert fresh.task.decoder.lm_head.weight is fresh.task.decoder.embed_tokens.weight
    assert torch.equal(fresh.task.decoder.embed_tokens.weight, exported[read])

    path = saved(trained, components, tmp_path / "run")
    other, other_components = made(tmp_path, *keys, tied=True)
    other.load(SavedState(path), trained.steps)
    assert torch.equal(steps(trained, components, 2, 3), steps(other, other_components, 2, 3))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_score_that_is_not_finite_is_never_the_best(value: float, higher_is_better: bool) -> None:
    state = TrainState()
    for step, score in enumerate((value, 0.5, value, 0.5), 1):
        state.step = step
        state.validated(score, higher_is_better=higher_is_better)
    assert (state.best_step, state.best_score, state.validations_since_best) == (2, 0.5, 2)
    assert ranked(state, higher_is_better) == ["step-2", "step-4"]


def test_a_best_score_that_was_stored_as_nan_is_replaced() -> None:
    state = TrainState(step=2, best_step=1, best_score=math.nan, val_scores={"step-1": math.nan})
    state.validated(0.1, higher_is_better=True)
    assert (state.best_step, ranked(state, True)) == (2, ["step-2"])


def test_a_folder_of_runs_is_no_run_and_the_newest_one_is_named(tmp_path: Path) -> None:
    for age, name in enumerate(("b", "a")):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "manifest.json").touch()
        os.utime(tmp_path / name / "model" / "manifest.json", (age, age))
    with problem("no-model", str(tmp_path)) as found:
        verify_model(tmp_path / "model")
    assert str(tmp_path / "a") in found[0].hint
