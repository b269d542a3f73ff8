"""Two processes against one: speed may differ, results may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT, launch

SMOKE = str(ROOT / "recipes" / "smoke.yaml")


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["value"] for row in rows if row["name"] == "train/loss"]


@pytest.mark.parametrize(
    ("name", "processes", "keys"),
    [("two", 2, []), ("accumulated", 1, ["train.micro_batch=2"]), ("both", 2, ["train.micro_batch=2"])],
)
def test_processes_and_accumulation_change_no_loss(
    smoke_run: Path, work: Path, name: str, processes: int, keys: list[str]
) -> None:
    launch(SMOKE, f"run.name={name}", *keys, cwd=work, processes=processes)
    run = work / "runs" / "smoke" / name
    one, other = losses(smoke_run), losses(run)
    assert len(one) == len(other)
    assert max(abs(a - b) for a, b in zip(one, other)) < 1e-4
    scores = [json.loads((r / "scores.json").read_text())["test"]["fixed_report"] for r in (smoke_run, run)]
    assert scores[0] == scores[1]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["launch"]["processes"] == processes
    rows = [json.loads(line)["id"] for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    whole = [json.loads(line)["id"] for line in (smoke_run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert rows == whole


def test_a_launcher_that_contradicts_the_recipe_stops_the_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    done = launch(SMOKE, cwd=work, check=False)
    assert done.returncode == 2
    assert "gradient_accumulation_steps=4" in done.stderr and "train.batch_size 8" in done.stderr


def test_a_batch_that_does_not_divide_over_the_processes_names_the_nearest(work: Path) -> None:
    done = launch(SMOKE, "train.batch_size=7", cwd=work, processes=2, check=False)
    assert done.returncode != 0 and "The nearest sizes that do: 6, 8" in done.stderr
