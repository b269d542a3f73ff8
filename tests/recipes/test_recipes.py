"""Every shipped recipe builds and trains for a few steps on few and small exams."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from harness import ROOT
from mini_busbra import draw, ellipse
from mini_ddti import write_archive
from tiny_models import of_bytes, save_llama, save_swin

from framework.build import build_components, build_model, build_optimizer, build_tokenizer
from framework.data.loading import BatchPlan, collate
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.exam import Batch
from framework.models.generation import generate
from framework.recipe import RECIPES, load_recipe
from framework.task import ReportTask
from framework.testing.elsewhere import PLACE, Elsewhere, There, send
from framework.train_step import batch_augment, train_step, weights_at

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))
LONG = {"self_critical"}  # samples reports in every step
FEW = ["data.dataset.exams=12", "data.dataset.val_exams=2", "data.dataset.test_exams=2", "data.dataset.size=64"]


def small(name: str, folder: Path) -> list[str]:
    """Overrides for small exams and pretrained models."""
    keys = ["data.image_size=64", f"data.cache_dir={folder / 'cache'}", "train.batch_size=4"]
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    if recipe.has_topics:
        keys.append("distiller.topics=3")
    if name == "swin_llm_lora":
        llama = save_llama(folder / "llama", of_bytes(["The left breast.", "An oval mass."]))
        return [*keys, *FEW, f"model.encoder.weights={save_swin(folder / 'swin')}", f"model.decoder.weights={llama}"]
    if "findings" in recipe.losses:
        keys.append("losses.findings.min_count=1")
    if name.startswith("ddti"):
        return [*keys, f"data.dataset.root={write_archive(folder / 'DDTI')}"]
    if not name.startswith("busbra"):
        return [*keys, *FEW]
    shapes = [ellipse(40, 80), ellipse(80, 40), ellipse(60, 60)]
    rows = [
        (f"{number:04d}-s", 2 + number % 4, 1 + number % 3, "1" if number % 5 else "0", shapes[number % 3])
        for number in range(30)
    ]
    root = draw(folder / "BUSBRA", [(i, b, f, "NaN" if f == 1 else v, m) for i, b, f, v, m in rows])
    return [*keys, f"data.dataset.root={root}", f"data.dataset.cache={folder / 'cache'}"]


def test_the_shallow_alignment_of_swin_llm_lora_trains_only_the_projection(tmp_path: Path) -> None:
    path = ROOT / "recipes" / "swin_llm_lora.yaml"
    (words,) = re.findall(r"^# +(model\.encoder\.frozen_stages=.*) is the shallow one", path.read_text(), re.MULTILINE)
    recipe = load_recipe(path, [*small("swin_llm_lora", tmp_path), *words.split()])
    encoder, decoder = build_model(recipe, build_tokenizer(recipe, ["An oval mass."], None), trained=False)
    assert not any(weight.requires_grad for weight in [*encoder.backbone.parameters(), *decoder.model.parameters()])
    assert all(weight.requires_grad for weight in decoder.input_proj.parameters())


def test_the_recipes_of_the_readme_exist() -> None:
    assert {"breast", "thyroid", "liver", "busbra", "ddti", "smoke"} <= set(SHIPPED)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in SHIPPED]
)
def test_a_shipped_recipe_builds_and_one_step_lowers_its_loss(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", small(name, tmp_path))
    accelerator = start_accelerator(recipe)
    components = build_components(recipe, accelerator, run=tmp_path)
    batch_plan = BatchPlan.plan(4, None, 0, 1)
    strategy = prepare(accelerator, recipe, components.task, batch_plan, lambda task: build_optimizer(recipe, task))
    task, train_set = components.task, components.exams["train"]
    (numbers, *_) = batch_plan.epoch(len(train_set), recipe.train.seed, 0)
    batch = collate([train_set[number] for number in numbers]).to("cpu")
    weights_L = weights_at(recipe, 0, 1)
    augment = batch_augment(components.augment, recipe.train.seed, 0, copies=True) if task.compares_copies else None
    before = {name: weight.detach().clone() for name, weight in task.named_parameters()}
    losses = []
    for _ in range(4):
        torch.manual_seed(0)
        output = train_step(strategy, [batch], weights_L, augment)
        losses.append(output.loss)
        assert output.grad_norm > 0
    assert losses[-1] < losses[0]
    unchanged = {name for name, weight in task.named_parameters() if torch.equal(weight, before[name])}
    assert unchanged == {name for name, weight in task.named_parameters() if not weight.requires_grad}
    batch.copy_BVCHW = batch.image_BVCHW if task.compares_copies else None
    check_other_device(task, batch)


def check_other_device(task: ReportTask, batch: Batch) -> None:
    """Runs on a simulated device, on which a tensor left on the CPU raises."""
    send(task)
    there = batch.map(There)
    with torch.no_grad(), Elsewhere():
        assert task.train().counts(there).device == task(there).objective_L.device == PLACE
        features = task.eval().features(there)
        for num_beams in (1, 2):
            assert len(generate(task.decoder, features, max_length=4, num_beams=num_beams)) == len(batch.exam_ids)
