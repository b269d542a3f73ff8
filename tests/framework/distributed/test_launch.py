"""What this machine cannot run is refused, and nothing else done in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from harness import ROOT, launch, problem

from framework.distributed.launch import start_accelerator
from framework.recipe import load_recipe

SMOKE = str(ROOT / "recipes" / "smoke.yaml")


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        (["train.precision=fp16"], "train.precision"),
        (["train.compile=reduce-overhead"], "train.compile"),
        (["train.tf32=true"], "train.tf32"),
        (["distributed.strategy=zero2", "distributed.offload=optimizer"], "distributed.offload"),
    ],
)
def test_a_setting_for_gpus_is_refused_without_one(keys: Sequence[str], place: str) -> None:
    with problem("needs-gpu", place=place):
        start_accelerator(load_recipe(SMOKE, keys))


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_zero_without_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    monkeypatch.setattr("framework.distributed.launch.find_spec", lambda name: None)
    with problem("missing-package", place="distributed.strategy") as found:
        start_accelerator(load_recipe(SMOKE, [f"distributed.strategy={strategy}"]))
    assert "sonoscribe[deepspeed]" in found[0].hint and "fsdp" in found[0].hint


@pytest.mark.long
def test_a_batch_that_does_not_divide_over_the_processes_names_the_nearest(work: Path) -> None:
    done = launch(SMOKE, "train.batch_size=7", "run.name=odd", cwd=work, processes=2, check=False)
    assert done.returncode != 0 and "6, 8" in done.stderr
