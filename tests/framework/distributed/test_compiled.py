"""`train.compile`."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import ROOT, launch, problem, records

from framework.recipe import load_recipe

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
# One term and few layers: compiling takes most of the time.
TINY = ("losses.global_semantic=null", "train.epochs=1", "evaluate.bootstrap_samples=0")


@pytest.mark.parametrize("strategy", ["zero1", "zero3", "fsdp"])
def test_a_compiled_task_is_refused_under_strategies_that_shard(strategy: str) -> None:
    with problem("unsupported", place="train.compile"):
        load_recipe(SMOKE, ["train.compile=true", f"distributed.strategy={strategy}"])


def test_a_machine_without_a_compiler_is_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(work / "kernels"))
    done = launch(SMOKE, *TINY, "train.compile=true", "run.name=bare", cwd=work, check=False)
    assert done.returncode == 2 and "train.compile" in done.stderr and "[unsupported]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_compiled_run_has_the_losses_of_a_plain_one(work: Path) -> None:
    losses = {}
    for name in ("false", "true"):
        launch(SMOKE, *TINY, f"train.compile={name}", f"run.name={name}", cwd=work)
        losses[name] = records(work / "runs" / "smoke" / name, "train/loss")
    assert len(losses["true"]) == 8 and losses["true"] == pytest.approx(losses["false"], rel=1e-4)
    assert losses["true"] != losses["false"]  # compiled code rounds in another order
