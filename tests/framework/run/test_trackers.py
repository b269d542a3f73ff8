"""MLflow and Weights & Biases: what they receive of a run, and how it continues there."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from harness import ROOT, problem

from framework.recipe import Recipe, load_recipe
from framework.run import trackers as module
from framework.run.trackers import IDS, Trackers, require_trackers, tracked_config
from framework.run.tracking import Tracker

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
LAUNCH = {"device": "cpu", "processes": 1, "id": "none@host:29500"}


def recipe_of(root: Path, *trackers: str) -> Recipe:
    return load_recipe(SMOKE, [f"run.root={root}", f"run.trackers=[{', '.join(trackers)}]"])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run, and an environment that names no store and no server."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    PartialState()  # as in a run; Accelerate's trackers need it
    folder = tmp_path / "smoke" / "one"
    folder.mkdir(parents=True)
    return folder


def mlflow_run(root: Path, run: Path) -> tuple[Any, Any]:
    """The client of the store beside all runs, and what it has of this run."""
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=(root / "mlruns").as_uri())
    found = client.get_run(json.loads((run / IDS).read_text())["mlflow"])
    return client, found


def test_mlflow_has_recipe_and_numbers_of_a_run_and_continues_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    recipe = recipe_of(tmp_path, "mlflow")
    first = Trackers(recipe, run, LAUNCH)
    first.send(1, {"train/loss": 2.0})
    first.send(2, {"train/loss": 1.5, "val/bleu_4": 0.25, "val/findings_f1": 0.5, "val/findings_f1/side": 0.75})
    first.close(failed=True)
    second = Trackers(recipe, run, LAUNCH, sent={(2, "train/loss")})
    second.send(2, {"train/loss": 1.5, "val/cider": 0.5})
    second.send(3, {"train/loss": 1.0})
    second.close(failed=False)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client, found = mlflow_run(tmp_path, run)
    points = [(one.step, one.value) for one in client.get_metric_history(found.info.run_id, "train/loss")]
    assert sorted(points) == [(1, 2.0), (2, 1.5), (3, 1.0)]
    assert found.data.metrics["val/bleu_4"] == 0.25 and found.data.metrics["val/cider"] == 0.5
    assert found.data.metrics["val/findings_f1"] == 0.5 and found.data.metrics["val/findings_f1.side"] == 0.75
    assert found.data.params["train.batch_size"] == str(recipe.train.batch_size)
    assert not any(found.data.tags[name] for name in ("mlflow.user", "mlflow.source.name", "mlflow.source.git.repoURL"))
    assert (found.info.run_name, found.info.status) == ("smoke/one", "FINISHED")
    assert len(client.search_runs([found.info.experiment_id])) == 1


def test_wandb_writes_a_run_offline_without_console_user_and_code(run: Path, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    recipe = recipe_of(tmp_path, "wandb")
    for steps, sent in (((1, 2), ()), ((2, 3), {(2, "train/loss")})):
        trackers = Trackers(recipe, run, LAUNCH, sent=sent)
        for step in steps:
            print("a report of a patient")
            trackers.send(step, {"train/loss": 2.0 / step})
        assert any(hint.startswith("wandb sync") for hint in trackers.hints)
        trackers.close(failed=False)
    wandb.teardown()  # as at the end of a process: until then its service may not have written all
    name = json.loads((run / IDS).read_text())["wandb"]
    files = sorted(run.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"), key=lambda path: path.stat().st_mtime)
    records = [wandb_records(path) for path in files]
    assert [history(one) for one in records] == [[(1, 2.0), (2, 1.0)], [(3, 2.0 / 3)]]
    updates = [item for record in records[0] for item in (*record.run.config.update, *record.config.update)]
    config = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in updates}
    assert config["train.batch_size"] == recipe.train.batch_size
    content = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert b"a report of a patient" not in content
    assert not list(run.rglob("requirements.txt")) and not list(run.rglob("wandb-metadata.json"))


def wandb_records(path: Path) -> list[Any]:
    """The records of a file of W&B: those of LevelDB's logs, in blocks of 32 KiB, after a head of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, part, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if (left := 32_768 - place % 32_768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return found


def history(records: list[Any]) -> list[tuple[int, float]]:
    rows = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def test_a_tracker_that_refuses_the_run_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with problem("external-program", "run.trackers"):
        Trackers(recipe_of(tmp_path, "mlflow"), run, LAUNCH)


class Failing:
    """A tracker whose server has gone away."""

    id, hint = "1", ""

    def __init__(self, *_: object) -> None:
        self.asked = 0

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def send(self, step: int, values: object) -> None:
        self.asked += 1
        raise ConnectionError("no route to host")

    def end(self, *, failed: bool) -> None: ...


def test_training_goes_on_without_a_tracker_that_fails(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Failing()
    monkeypatch.setitem(module.CLASSES, "mlflow", lambda *_: failing)  # type: ignore[arg-type]
    tracker = Tracker(run, writes=True, done=0, rewritten=(), tensorboard=False)
    tracker.connect(recipe_of(tmp_path, "mlflow"), LAUNCH)
    for step in (1, 2):
        tracker.scalars(step, {"train/loss": 1.0})
    tracker.close()
    assert failing.asked == 1 and "mlflow: no route to host" in capsys.readouterr().out
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2 and not list(run.glob("*tfevents*"))


def test_trackers_are_checked_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with problem("unknown-name", "run.trackers.1") as found:
        recipe_of(tmp_path, "tensorboard", "wandbb")
    assert "'wandb'" in found[0].hint
    with problem("duplicate-name", "run.trackers.1"):
        recipe_of(tmp_path, "mlflow", "mlflow")
    monkeypatch.setattr(module, "package_versions", lambda names: {})
    with problem("missing-package", "run.trackers") as found:
        require_trackers(recipe_of(tmp_path, "tensorboard", "wandb"))
    assert "sonoscribe[trackers]" in found[0].hint and len(found) == 1


def test_the_recipe_is_sent_with_the_launch_and_without_its_address(tmp_path: Path) -> None:
    config = tracked_config(recipe_of(tmp_path, "tensorboard"), LAUNCH)
    assert config["launch.device"] == "cpu" and "launch.id" not in config
    assert config["optimizer.encoder_lr"] == "null" and json.loads(config["run.trackers"]) == ["tensorboard"]
