"""Sizes that this machine cannot hold are refused at once, with the key that asks for them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from harness import problem
from torch import nn

from framework import build
from framework.build import build_components, build_task, build_tokenizer, load_exams
from framework.distributed.launch import start_accelerator
from framework.models.size import MOST_TENSORS, TooLarge, bounded_size
from framework.plan.plan import plan
from framework.recipe import Recipe, load_recipe

TINY = ("data.dataset.exams=8", "data.dataset.val_exams=1", "data.dataset.test_exams=1", "distiller.topics=2")
# Overrides, the key of the error, and whether a plan, which may be of another machine, is refused too.
SIZES = [
    (["model.encoder.width=1000000000"], "model.encoder.width", True),
    (["model.encoder.max_views=999999999"], "model.encoder.max_views", False),
    (["model.decoder.width=100000", "model.decoder.layers=2"], "model.decoder.width", False),
    (["model.decoder.layers=999999999"], "model.decoder.layers", True),
    (["model.decoder.feedforward=999999999"], "model.decoder.feedforward", False),
    (["model.encoder={_delete_: true, name: resnet, width: 65536}"], "model.encoder.width", False),
    (
        ["model.encoder={_delete_: true, name: backbone, architecture: convnext, config: {depths: [999999999]}}"],
        "model.encoder.config.depths",
        True,
    ),
    (
        ["model.decoder={_delete_: true, name: hf_causal, architecture: gpt2, config: {n_layer: 900000, n_embd: 12}}"],
        "model.decoder.config.n_layer",
        True,
    ),
    (["losses={next_token: {}, contrastive: {width: 999999999}}"], "losses.contrastive.width", True),
    (["data.dataset.exams=999999999999"], "data.dataset", True),
]  # fmt: skip


def tiny(folder: Path, *overrides: str) -> Recipe:
    return load_recipe("smoke", [*TINY, f"data.cache_dir={folder / 'cache'}", *overrides])


@pytest.mark.parametrize(("overrides", "key", "planned"), SIZES, ids=lambda each: each if isinstance(each, str) else "")
def test_a_size_beyond_this_machine_is_refused_at_once_with_its_key(
    tmp_path: Path, overrides: list[str], key: str, planned: bool
) -> None:
    # fp32, since a process has one precision, and a wide decoder would choose bf16.
    recipe = tiny(tmp_path, "train.precision=fp32", *overrides)
    started = time.process_time()
    with problem("out-of-range", key):
        build_components(recipe, start_accelerator(recipe), run=None)
    if planned:
        with problem("out-of-range", key):
            plan(recipe, 1)
    assert time.process_time() - started < 60
    assert not (tmp_path / "cache").exists()  # before images and topics


def test_topics_beyond_memory_are_refused_by_a_plan(tmp_path: Path) -> None:
    with problem("out-of-range", "losses.topic") as found:
        plan(tiny(tmp_path, "distiller.topics=9999999999999"), 1)
    assert "topic_count 9999999999999" in found[0].found


def test_the_recipe_of_a_saved_model_is_bounded_too(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, "model.decoder.width=100000")
    tokenizer = build_tokenizer(recipe, ["An oval mass."], None)
    with problem("out-of-range", "model.decoder.width"):
        build_task(recipe, tokenizer, None, None, trained=True, model=tmp_path)


def test_the_limit_is_the_memory_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(tmp_path)
    tokenizer = build_tokenizer(recipe, ["An oval mass."], None)
    whole = sum(weight.nbytes for weight in build_task(recipe, tokenizer, None, None, trained=True).parameters())
    monkeypatch.setattr(build, "memory_bytes", lambda: whole)
    build_task(recipe, tokenizer, None, None, trained=True)
    monkeypatch.setattr(build, "memory_bytes", lambda: 10_000)
    with problem("out-of-range", "model.encoder"):
        build_task(recipe, tokenizer, None, None, trained=True)


def test_a_value_that_the_class_of_a_plugin_rejects_names_its_block(tmp_path: Path) -> None:
    with problem("out-of-range", "optimizer") as found:
        plan(tiny(tmp_path, "optimizer.beta2=1"), 1)
    assert "beta" in found[0].found


def test_too_many_exams_are_not_listed() -> None:
    class Endless:
        def splits(self) -> dict[str, range]:
            return {"train": range(2**62)}

    with problem("out-of-range", "data.dataset"):
        load_exams(Endless())  # type: ignore[arg-type]


def test_weights_count_before_they_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.models.size.memory_bytes", lambda: 1000)
    with bounded_size():
        nn.Linear(10, 10)
        with torch.device("meta"):
            nn.Linear(10_000, 10_000)
    with bounded_size(), pytest.raises(TooLarge, match="memory"):
        nn.Linear(100, 100)
    with bounded_size(), torch.device("meta"), pytest.raises(TooLarge, match="10,000"):
        nn.ModuleList(nn.Linear(1, 1) for _ in range(MOST_TENSORS))
    nn.Linear(100, 100)  # afterwards, nothing is counted
