"""What the recipe's `auto` becomes on a machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import ROOT, launch, records

from framework.distributed import resolve
from framework.distributed.resolve import precision_notice, precision_of
from framework.recipe import load_recipe
from framework.recipe.source import shipped_recipes

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
WIDE = ["model.decoder.width=512", "model.decoder.heads=8"]


@pytest.fixture(params=["amx_tile", "avx512_bf16"])
def cpu_with_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "on_cpu", lambda: True)
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name == request.param)


@pytest.mark.usefixtures("cpu_with_bf16")
def test_auto_is_bf16_for_wide_decoders_on_a_cpu_with_bf16_and_says_so() -> None:
    assert precision_of(load_recipe(SMOKE, WIDE)) == "bf16"
    assert "train.precision=fp32" in str(precision_notice(load_recipe(SMOKE, WIDE)))
    narrow = load_recipe(SMOKE, ["model.decoder.width=504"])
    assert precision_of(narrow) == "fp32" and precision_notice(narrow) is None


@pytest.mark.usefixtures("cpu_with_bf16")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_of_the_recipe_is_kept(precision: str) -> None:
    recipe = load_recipe(SMOKE, [*WIDE, f"train.precision={precision}"])
    assert precision_of(recipe) == precision and precision_notice(recipe) is None


def test_auto_is_fp32_on_a_cpu_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "on_cpu", lambda: True)
    monkeypatch.setattr(resolve, "cpu_multiplies_bf16", lambda: False)
    assert precision_of(load_recipe(SMOKE, WIDE)) == "fp32"


@pytest.mark.usefixtures("cpu_with_bf16")
@pytest.mark.parametrize("name", [name for name in shipped_recipes() if "/" not in name])
def test_shipped_recipes_train_in_fp32_on_every_cpu(name: str) -> None:
    assert precision_of(load_recipe(name)) == "fp32"


@pytest.mark.long
def test_losses_in_bf16_are_those_in_fp32_to_the_third_digit(work: Path) -> None:
    wide = [*WIDE, "model.decoder.feedforward=512", "optimizer.lr=1e-3", "train.epochs=5", "evaluate.every_epochs=5"]
    losses = {}
    for precision in ("fp32", "bf16"):
        launch(SMOKE, *wide, f"train.precision={precision}", f"run.name={precision}", cwd=work)
        losses[precision] = records(work / "runs" / "smoke" / precision, "train/loss")
    assert len(losses["fp32"]) == 40 and losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-2)
