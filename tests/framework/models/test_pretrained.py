"""Pretrained weights: which are saved, and that a saved model is rebuilt with the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from harness import ROOT, launch, problem, records
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_models import of_bytes, save_llama, save_swin

from framework.build import RunComponents, build_components, build_model, build_optimizer, build_task, build_tokenizer
from framework.checkpoint.export import ModelTexts, load_weights
from framework.checkpoint.format import (
    RetentionPolicy,
    SavedState,
    Snapshot,
    TrainState,
    checkpoints_of,
    write_checkpoint,
)
from framework.data.loading import BatchPlan, collate
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.distributed.strategy import Strategy
from framework.models.external_weights import model_metadata, print_saved, require_same_weights, unsaved_names
from framework.models.pretrained import weights_folder
from framework.recipe import Recipe, load_recipe, portable
from framework.run.init_from import find_source, load_initial_weights
from framework.train_step import train_step

REPORTS = ["An oval hypoechoic mass in the left breast.", "The glandular tissue is homogeneous. BI-RADS category 1."]
RECIPE = """
_base_: {root}/recipes/smoke.yaml
data:
  dataset: {{exams: 16, val_exams: 2, test_exams: 2}}
  tokenizer: {{name: hf, weights: {folder}/llama}}
distiller: {{_delete_: true, name: none}}
model:
  encoder: {{_delete_: true, name: backbone, weights: {folder}/swin, frozen_stages: 2}}
  decoder: {{_delete_: true, name: hf_causal, weights: {folder}/llama, tuning: lora, lora_rank: 2, queries: 2}}
losses: {{topic: null, global_semantic: null}}
train: {{epochs: 2}}
evaluate: {{num_beams: 1, max_length: 40}}
"""
LEARNED = "decoder.input_proj.0.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Swin, a Llama with its tokenizer, and a recipe that adapts them."""
    home = tmp_path_factory.mktemp("pretrained")
    save_swin(home / "swin")
    save_llama(home / "llama", of_bytes(REPORTS))
    (home / "lora.yaml").write_text(RECIPE.format(root=ROOT, folder=home))
    return home


def made(folder: Path, *keys: str) -> tuple[Recipe, Strategy, RunComponents]:
    recipe = load_recipe(folder / "lora.yaml", [f"data.cache_dir={folder / 'cache'}", *keys])
    accelerator = start_accelerator(recipe)
    components = build_components(recipe, accelerator, run=folder)
    batch_plan = BatchPlan.plan(8, None, 0, 1)
    return (
        recipe,
        prepare(accelerator, recipe, components.task, batch_plan, lambda task: build_optimizer(recipe, task)),
        components,
    )


def steps(strategy: Strategy, components: RunComponents, *numbers: int) -> list[float]:
    losses = []
    strategy.task.train()
    for number in numbers:
        torch.manual_seed(number)
        batch = collate([components.exams["train"][place] for place in range(4 * number, 4 * number + 4)]).to("cpu")
        losses.append(float(train_step(strategy, [batch], torch.ones(1)).loss))
    return losses


def saved(recipe: Recipe, strategy: Strategy, components: RunComponents, folder: Path) -> Path:
    state = strategy.state()
    texts = ModelTexts(components.tokenizer, portable(recipe), model_metadata(strategy.task))
    progress = TrainState(step=strategy.steps)
    keep = RetentionPolicy(keep_last=1, keep_best=0, higher_is_better=True)
    return write_checkpoint(
        folder / "checkpoints", Snapshot(progress, state, strategy.export_weights(state), texts), keep
    )


@pytest.mark.parametrize(
    "keys",
    [
        ("train.ema_decay=0.9",),
        pytest.param(("distributed.strategy=fsdp",), marks=pytest.mark.long),
        pytest.param(("distributed.strategy=zero3",), marks=pytest.mark.long),
    ],
)
def test_external_weights_are_not_saved_and_training_resumes_exactly(
    folder: Path, tmp_path: Path, keys: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, strategy, components = made(folder, *keys)
    names = unsaved_names(components.task)
    steps(strategy, components, 0, 1)
    path = saved(recipe, strategy, components, tmp_path)
    with strategy.full_params_model() as task:
        whole = {name: value.clone() for name, value in task.state_dict().items()}
    kept = {name.split("/")[-1] for name in load_file(path / "training.safetensors")}
    exported = set(load_file(path / "model" / "model.safetensors"))
    assert names and not names & (kept | exported) and exported == set(whole) - names
    assert any("embed_tokens" in name for name in names) and any("swin.embeddings" in name for name in names)
    print_saved(strategy.task, strategy.shapes)
    assert f"the others are read from {folder}/swin, {folder}/llama again" in capsys.readouterr().out

    _, other, other_components = made(folder, *keys)
    require_same_weights(path / "model", other.task)
    other.load(SavedState(path), strategy.steps)
    assert steps(strategy, components, 2, 3) == steps(other, other_components, 2, 3)

    tokenizer = build_tokenizer(recipe, [], path / "model")
    fresh = build_task(recipe, tokenizer, None, None, trained=True, model=path / "model")
    load_weights(path / "model", fresh)
    assert fresh.state_dict().keys() == whole.keys()
    assert not [name for name, value in fresh.state_dict().items() if not torch.equal(value, whole[name])]


def test_a_missing_or_changed_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    (mine / "lora.yaml").write_text(RECIPE.format(root=ROOT, folder=mine))
    recipe, strategy, components = made(mine)
    model = saved(recipe, strategy, components, tmp_path) / "model"
    tokenizer = build_tokenizer(recipe, [], model)
    (mine / "llama").rename(mine / "away")
    with problem("no-such-file", place="weights"):
        build_model(recipe, tokenizer, trained=True, model=model)
    shutil.copytree(mine / "away", mine / "llama")
    weights = load_file(mine / "llama" / "model.safetensors")
    first = sorted(weights)[0]
    save_file({**weights, first: weights[first] + 1}, mine / "llama" / "model.safetensors", {"format": "pt"})
    for check in (
        lambda: build_model(recipe, tokenizer, trained=True, model=model),
        lambda: require_same_weights(model, made(mine)[1].task),
    ):
        with problem("weights-differ", place="model.decoder.weights"):
            check()
    asked = f"init_from={model.parent}"
    recipe, strategy, components = made(mine, asked)
    with problem("weights-differ", place="model.decoder.weights"):
        load_initial_weights(
            find_source(str(model.parent)), recipe, strategy.task, components.tokenizer, components.exams
        )
    recipe, strategy, components = made(mine, asked, "init_exclude=[decoder]")
    load_initial_weights(find_source(str(model.parent)), recipe, strategy.task, components.tokenizer, components.exams)
    save_file({first: weights[first]}, mine / "llama" / "model.safetensors", {"format": "pt"})
    with problem("weights-differ", place="model.decoder.weights"):
        build_model(recipe, tokenizer, trained=True, model=model)


def test_a_fully_trained_model_is_rebuilt_without_its_folders(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    text = RECIPE.format(root=ROOT, folder=mine).replace("frozen_stages: 2", "frozen_stages: 0")
    (mine / "lora.yaml").write_text(text.replace("tuning: lora, lora_rank: 2", "tuning: full"))
    recipe, strategy, components = made(mine)
    steps(strategy, components, 0)
    model = saved(recipe, strategy, components, tmp_path) / "model"
    assert not unsaved_names(components.task) and "external_weights" not in json.loads(
        (model / "decoder.json").read_text()
    )
    for gone in ("swin", "llama"):
        shutil.rmtree(mine / gone)
    task = build_task(recipe, build_tokenizer(recipe, [], model), None, None, trained=True, model=model)
    load_weights(model, task)
    assert torch.equal(task.state_dict()[LEARNED], strategy.task.state_dict()[LEARNED])


def test_init_from_keeps_the_own_prompt(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, strategy, components = made(folder, "model.decoder.prompt=zq")
    theirs = saved(recipe, strategy, components, tmp_path)
    recipe, strategy, components = made(folder, "model.decoder.prompt=qz")
    mine = components.task.decoder.prompt_T.clone()
    source = load_file(theirs / "model" / "model.safetensors")
    assert len(source["decoder.prompt_T"]) == len(mine) and not torch.equal(source["decoder.prompt_T"], mine)
    load_initial_weights(find_source(str(theirs)), recipe, components.task, components.tokenizer, components.exams)
    assert torch.equal(components.task.decoder.prompt_T, mine)
    assert torch.equal(components.task.decoder.input_proj[0].weight, source[LEARNED])
    assert "model.decoder.prompt" in capsys.readouterr().out


def test_a_name_that_the_hub_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(name: str, **_: Any) -> str:
        raise LocalEntryNotFoundError(f"no {name} here\nand no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with problem("no-such-file", place="x.weights"):
        weights_folder("acme/swin", "x.weights")


@pytest.mark.parametrize("weights", ["folder", "acme/adapter"])
def test_an_adapter_is_refused_also_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with problem("wrong-format", place="x.weights"):
        weights_folder(str(tmp_path) if weights == "folder" else weights, "x.weights")


def test_size_estimates_read_no_weights(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    (mine / "lora.yaml").write_text(RECIPE.format(root=ROOT, folder=mine))
    recipe = load_recipe(mine / "lora.yaml")
    tokenizer = build_tokenizer(recipe, REPORTS, None)
    sizes = []
    for keys in ({"trained": False}, {"trained": True}):
        sizes.append([sum(w.numel() for w in part.parameters()) for part in build_model(recipe, tokenizer, **keys)])  # type: ignore[arg-type]
        for weights in mine.rglob("*.safetensors"):
            weights.unlink()
    assert sizes[0] == sizes[1]


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_two_processes_save_and_resume_with_external_weights(folder: Path, work: Path, strategy: str) -> None:
    keys: tuple[Any, ...] = (f"distributed.strategy={strategy}", f"run.name={strategy}")
    launch(str(folder / "lora.yaml"), *keys, cwd=work, processes=2)
    whole = work / "runs" / "lora" / strategy
    cut = whole.with_name(f"{strategy}-cut")
    shutil.copytree(whole, cut)
    for left in (".lock", "scores.json"):
        (cut / left).unlink()
    shutil.rmtree(checkpoints_of(cut / "checkpoints")[0])
    launch(str(folder / "lora.yaml"), keys[0], f"resume={cut}", cwd=work, processes=2)
    assert records(cut, "train/loss") == records(whole, "train/loss")
    done = launch("evaluate", str(whole), cwd=work)
    assert "the model" in done.stdout
