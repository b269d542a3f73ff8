"""The recipe with the published settings, on a synthetic data set in the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import ROOT
from PIL import Image
from transformers import ResNetConfig, ResNetModel

from framework.build import build_components, build_optimizer
from framework.data.loading import BatchPlan, collate
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.recipe import load_recipe
from framework.runtime.signals import StopSignals
from framework.train_step import train_step, weights_at
from framework.trainer import train

PAPER = ROOT / "recipes" / "paper"
TOPICS = {"breast": 18, "liver": 18, "thyroid": 5}
REPORTS = (
    "双侧乳腺腺体层次清，左乳_Loc_见一低回声结节，大小约_2DS_，边界清，CDFI未见血流信号。双侧腋窝未见肿大淋巴结。",
    "双乳腺体回声均匀，未见明显占位性病变。双侧腋窝未见肿大淋巴结。",
    "右乳_LocR_见多个无回声，较大者约_3DS_，边界清晰,形态规则。余腺体未见异常。",
    "双乳术后改变，左乳见_SCM_混合回声，边界不清。CDFI可见_r_血流信号。",
)


def published(folder: Path, exams: int = 24) -> Path:
    """As published: UTF-8 with a byte order mark, integer ids, two images per exam, masked measures."""
    draw = np.random.default_rng(0)
    found: dict[str, list[dict[str, Any]]] = {"train": [], "test": [], "val": []}
    (folder / "images").mkdir()
    for uid in range(1, exams + 1):
        split = "train" if uid <= exams - 8 else "val" if uid <= exams - 4 else "test"
        names = [f"{uid}_1.jpeg", f"{uid}_2.jpeg"]
        for name in names:
            Image.fromarray(draw.integers(0, 255, (72, 96, 3), dtype=np.uint8)).save(folder / "images" / name)
        finding = "".join(REPORTS[(uid + step) % 4] for step in range(1 + uid % 2))
        exam = {"uid": uid, "finding": finding, "image_path": names, "labels": uid % 3, "split": split}
        found[split].append(exam)
    file = folder / "exams.json"
    file.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8-sig")
    return file


def tiny_weights(folder: Path) -> Path:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    return folder


def small(folder: Path) -> list[str]:
    """Overrides for synthetic exams and a tiny network, without changes to the other settings."""
    return [
        f"data.dataset.file={published(folder)}", f"data.dataset.images={folder / 'images'}",
        f"data.cache_dir={folder / 'cache'}", f"model.encoder.weights={tiny_weights(folder / 'weights')}",
        "model.encoder.depth=10", "model.encoder.width=8", "data.image_size=64", "distiller=faiss_kmeans",
        "distiller.topics=3", "train.batch_size=8", "model.decoder.width=64",
    ]  # fmt: skip


@pytest.mark.parametrize("organ", sorted(TOPICS))
def test_the_settings_are_the_published_ones(organ: str) -> None:
    recipe = load_recipe(PAPER / f"{organ}.yaml")
    topics = recipe.distiller.keys
    layout = [topics[key] for key in ("embedding", "neighbours", "components", "min_dist")]
    assert (topics["topics"], layout) == (TOPICS[organ], ["counts", 10, 2, 0.0])
    assert recipe.losses["topic"].keys["dropout"] == 0.5 and recipe.model.encoder.keys["max_views"] == 0
    assert (recipe.data.image_size, recipe.data.channels, recipe.data.augment.keys["share"]) == (224, 3, 224 / 256)
    assert recipe.model.encoder.keys["depth"] == 101 and recipe.model.encoder.keys["weights"] == "microsoft/resnet-101"
    decoder = recipe.model.decoder.keys
    assert [decoder[key] for key in ("layers", "width", "heads", "feedforward")] == [3, 512, 8, 512]
    assert (decoder["dropout"], decoder["feature_dropout"], recipe.evaluate.max_length) == (0.1, 0.5, 150)
    assert {name: loss.weight for name, loss in recipe.losses.items()} == {
        "next_token": 0.7,
        "topic": 0.3,
        "global_semantic": 0.3,
    }
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.keys["amsgrad"], optimizer.keys["weight_decay"]) == ("adam", True, 5e-5)
    assert (optimizer.lr, optimizer.encoder_lr, optimizer.group_lrs) == (1e-3, 5e-5, {"losses.topic": 5e-5})
    train = recipe.train
    assert (train.epochs, train.batch_size, train.max_grad_norm, train.clip_by, train.seed) == (
        50,
        32,
        0.1,
        "value",
        9233,
    )
    assert train.precision == "fp32"
    assert (recipe.schedule.name, recipe.schedule.keys) == ("step", {"every": 28 / 50, "gamma": 0.1})
    assert recipe.evaluate.monitor == "val/bleu_4"
    assert organ in recipe.data.dataset.keys["file"] and organ in recipe.data.dataset.keys["images"]


def test_steps_on_exams_in_the_published_layout_lower_the_loss(tmp_path: Path) -> None:
    recipe = load_recipe(PAPER / "breast.yaml", small(tmp_path))
    accelerator = start_accelerator(recipe)
    components = build_components(recipe, accelerator, run=tmp_path)
    assert {name: len(exams) for name, exams in components.exams.items()} == {"train": 16, "val": 4, "test": 4}
    assert all(len(exam.views) == 2 for exam in components.exams["train"].exams)
    assert {"_2ds_", "_loc_", "_locr_", "_scm_"} <= {word.lower() for word in components.tokenizer.vocabulary}
    batch_plan = BatchPlan.plan(8, None, 0, 1)
    strategy = prepare(accelerator, recipe, components.task, batch_plan, lambda task: build_optimizer(recipe, task))
    rates = {group["lr"] for group in strategy.optimizer.param_groups}
    assert rates == {5e-5, 1e-3}
    batch = collate([components.exams["train"][number] for number in range(8)]).to("cpu")
    assert batch.image_BVCHW.shape[2] == 3 and not torch.equal(*batch.image_BVCHW[:, :, :2].unbind(2)), "in color"
    losses = []
    for _ in range(4):
        torch.manual_seed(0)
        losses.append(train_step(strategy, [batch], weights_at(recipe, 0, 1)).loss)
    assert losses[-1] < losses[0]


def test_one_error_names_all_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopSignals, "listen", lambda _: None)  # signals stay the test runner's
    recipe = load_recipe(PAPER / "liver.yaml", [f"run.root={tmp_path / 'runs'}"])
    with pytest.raises(ValueError) as caught:  # the command line prints it without a traceback
        train(recipe)
    assert list(tmp_path.iterdir()) == [], "a refused run leaves no folder"
    for part in (
        "data/published/liver.json: no such manifest (data.dataset.file)",
        "https://github.com/LijunRio/Ultrasound-Report-Generation",
        "arXiv 2406.00644",
        '"image_path": ["7_1.jpeg", "7_2.jpeg"]',
        "data.dataset.images",
        "recipes/breast.yaml runs without any download",
    ):
        assert part in str(caught.value)
