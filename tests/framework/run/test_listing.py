"""The states of runs, by what their folders contain."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from harness import ROOT

import sonoscribe
from framework import trainer
from framework.cli import main
from framework.run.listing import FAILURE, LOCK, list_runs
from framework.runtime.errors import Stopped


@pytest.fixture
def run(smoke_run: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "runs" / "smoke" / "a"
    shutil.copytree(smoke_run, copy)
    return copy


def test_a_finished_run_has_epochs_and_the_best_score_with_its_name(run: Path) -> None:
    (found,) = list_runs(run.parents[1])
    assert (found.run, found.recipe, found.state, found.reason) == (str(run), "smoke", "finished", None)
    assert (found.epoch, found.epochs, found.monitor) == (3, 3, "val/bleu_4")
    assert found.best == max(
        row["value"]
        for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if row["name"] == "val/bleu_4"
    )
    assert list_runs(run) == [found]


def test_a_run_is_running_while_its_lock_is_held_and_interrupted_after(run: Path) -> None:
    (run / "scores.json").unlink()
    with (run / LOCK).open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert list_runs(run)[0].state == "running"
    assert list_runs(run)[0].state == "interrupted"


def test_runs_that_cannot_be_read_are_listed_and_the_newest_is_first(run: Path) -> None:
    other = run.with_name("b")
    other.mkdir()
    (other / "environment.json").touch()
    os.utime(other / "environment.json", (1, 1))
    (other / "recipe.yaml").write_text("format: 1\n")
    first, second = list_runs(run.parents[1])
    assert (first.run, second.run) == (str(run), str(other))
    assert (second.epoch, second.epochs, second.best, second.monitor, second.state) == (
        0, None, None, None, "interrupted",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "state"), [(RuntimeError("no such\nthing"), "failed"), (Stopped("x"), "interrupted")]
)
def test_a_run_that_ends_by_an_error_has_failed_until_it_resumes(
    error: Exception, state: str, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: trainer.Trainer) -> None:
        raise error

    monkeypatch.chdir(work)
    words = [f"run.root={tmp_path}", "run.name=a", "train.epochs=1"]
    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "epoch", fails)
        with pytest.raises(type(error)):
            sonoscribe.train("smoke", words)
    (found,) = list_runs(tmp_path)
    assert (found.state, found.reason) == (state, "no such" if state == "failed" else None)
    if state == "failed":
        sonoscribe.train("smoke", [*words, "resume=auto"])
        assert list_runs(tmp_path)[0].state == "finished" and not (tmp_path / "smoke" / "a" / FAILURE).exists()


def test_the_verb_prints_a_table_or_json(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["runs"], ["runs", "runs", "--json"], ["runs", str(ROOT / "recipes")], ["runs", "missing"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = capsys.readouterr()
        if words == ["runs"]:
            header, row = out.splitlines()
            assert header.split()[:2] == ["run", "started"] and row.split()[0] == "runs/smoke/a"
            assert row.split()[-1] == "finished"
        elif "--json" in words:
            assert [found["run"] for found in json.loads(out)] == ["runs/smoke/a"]
        elif "missing" in words:
            assert ended.value.code == 2 and "[no-such-file]" in err
        else:
            assert out.startswith("no runs in ")
