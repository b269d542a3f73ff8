"""A grid is run as a user would, is killed in the middle, and ends with every cell done once."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from harness import ROOT, all_records, kill_all_of, launch

from framework import cli
from framework.grid.cell_folder import CellFolder
from framework.grid.cell_process import CELL
from framework.runtime.files import read_lines

LONGEST_S = 300.0


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """`grid run` in the background, as from a terminal."""
    command = [sys.executable, str(ROOT / "launch.py"), "grid", "run", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def until(happens: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not happens():
        assert time.monotonic() < deadline, f"no {what} within {LONGEST_S:.0f} s"
        time.sleep(0.1)


def cells(folder: Path) -> list[CellFolder]:
    return [CellFolder(path.with_suffix("")) for path in sorted((folder / "runs" / "cells").glob("*.yaml"))]


def running(folder: Path) -> list[CellFolder]:
    return [cell for cell in cells(folder) if cell.status() == "running"]


def processes_of(cell: CellFolder) -> list[psutil.Process]:
    """All processes that train a cell, without its cell process."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(CELL) == str(cell.path.resolve()):
                found.append(process)
    return found


def write_grid(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(f"recipe: shipped:smoke\n{text}", encoding="utf-8")
    return "mine.yaml"


# Two cells that can be trained, and one with too few exams for its batch, which shows when it starts.
THREE_CELLS = """
set:
  train.epochs: 10
  evaluate.every_epochs: 10
  data.dataset: {name: phantom, organ: breast, exams: 32, val_exams: 4, test_exams: 4}
axes:
  case:
    too large: {train.batch_size: 512}
    one: {train.seed: 1}
    two: {train.seed: 2}
report: {metrics: [test/bleu_4], baseline: one}
"""


class Killed:
    """A grid whose scheduler and one of whose cells were killed, and what `grid run` printed when it resumed them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, write_grid(folder, THREE_CELLS)
        scheduler = start(self.name, "--jobs", "3", cwd=folder)
        try:
            until(lambda: any(cell.saved_step() for cell in running(folder)), "checkpoint")
            self.victim = next(cell for cell in running(folder) if cell.saved_step())
            scheduler.kill()
            scheduler.wait()
            watcher = self.victim.holder()
            assert watcher is not None
            for process in processes_of(self.victim):
                process.kill()
            os.kill(watcher.pid, signal.SIGKILL)
        except BaseException:
            kill_all_of(scheduler.pid)
            raise
        until(lambda: any(cell.status() == "failed" for cell in cells(folder)), "failed cell")
        self.before = self.states()
        self.finished = launch("grid", "run", self.name, "--jobs", "2", "--retry", "failed", cwd=folder, check=False)

    def states(self) -> dict[str, tuple[str, int]]:
        return {cell.path.name: (cell.status(), cell.state().attempts) for cell in cells(self.folder)}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return Killed(tmp_path_factory.mktemp("grid"))


@pytest.fixture
def grid(killed: Killed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Types a grid command in the folder of the killed grid, in this process. Returns exit code, output and errors."""
    monkeypatch.chdir(killed.folder)

    def call(verb: str, *words: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["grid", verb, killed.name, *words])
        return ended.value.code, *capsys.readouterr()

    return call


def test_a_killed_grid_ends_with_every_cell_done_once(killed: Killed) -> None:
    statuses = sorted(killed.states().values())
    assert statuses == [("done", 1), ("done", 2), ("failed", 2)]
    assert killed.states()[killed.victim.path.name] == ("done", 2)
    for cell in cells(killed.folder):
        if cell.status() == "done":
            all_records(cell.run)  # fails if a step was made twice


def test_the_killed_cell_resumes_from_its_checkpoint(killed: Killed) -> None:
    assert "resumed from" in killed.victim.log.read_text()


def test_a_finished_grid_prints_a_table_of_scores(killed: Killed) -> None:
    out = killed.finished.stdout
    assert "test/bleu_4" in out and "one (baseline)" in out and out.count("1/1") == 2
    assert -1 < out.find("above the strongest baseline") < out.index("one (baseline)"), out
    made = killed.folder / "runs" / "grids" / "mine"
    rows = {row["row"]: row for row in csv.DictReader((made / "table.csv").open())}
    for label, seed in (("one", 1), ("two", 2)):
        (run,) = [cell.run for cell in cells(killed.folder) if f"seed: {seed}\n" in cell.recipe_file.read_text()]
        score = json.loads((run / "scores.json").read_text())["test"]["model"]["bleu_4"]
        assert float(rows[label]["test/bleu_4 mean"]) == pytest.approx(score)
    assert "\\toprule" in (made / "table.tex").read_text() and "<table" in (made / "index.html").read_text()


def test_a_failed_cell_is_reported_with_its_reason(killed: Killed) -> None:
    assert killed.finished.returncode == 1
    (failed,) = [cell for cell in cells(killed.folder) if cell.status() == "failed"]
    assert "512" in failed.state().reason and failed.state().reason in killed.finished.stdout
    assert "0/1, 1 failed" in killed.finished.stdout


def test_settled_cells_are_not_run_again(killed: Killed, grid) -> None:
    before = killed.states()
    code, out, _ = grid("run")
    assert code == 1 and "--retry failed" in out and killed.states() == before


def test_status_shows_every_cell(killed: Killed, grid) -> None:
    rows = json.loads(grid("status", "--json")[1])
    assert sorted(row["status"] for row in rows) == ["done", "done", "failed"]
    assert {row["hash"] for row in rows} == set(killed.states())
    assert "3 cells: 3 queued" in grid("status", "train.epochs=9")[1], "an override makes other cells"


def test_a_cell_is_chosen_by_its_label(grid) -> None:
    code, out, _ = grid("run", "--dry-run", "--only", "tw")
    assert code == 0 and len(out.splitlines()) == 2 and "done" in out
    code, _, err = grid("run", "--only", "three")
    assert code == 2 and "--only" in err and "[unknown-name]" in err


def test_a_failed_cell_is_restarted_only_on_request(killed: Killed, grid) -> None:
    (digest,) = [name for name, (status, _) in killed.states().items() if status == "failed"]
    assert killed.before[digest] == ("failed", 1) and killed.states()[digest] == ("failed", 2)
    assert "1 failed cell to start again" in killed.finished.stdout
    code, _, err = grid("run", "--retry", "done")
    assert code == 2 and "[unknown-name]" in err


@pytest.mark.long
def test_a_cancelled_grid_saves_and_resumes(tmp_path):
    name = write_grid(tmp_path, "set: {train.epochs: 40, data.dataset.exams: 256}\nseeds: [1, 2]\n")
    scheduler = start(name, "--jobs", "2", cwd=tmp_path)
    try:
        until(lambda: [c for c in running(tmp_path) if c.progress()] and len(running(tmp_path)) == 2, "two that train")
        assert "asked 2 running cells" in launch("grid", "cancel", name, cwd=tmp_path).stdout
        out, _ = scheduler.communicate(timeout=LONGEST_S)
    finally:
        scheduler.kill()
    assert scheduler.returncode == 1 and "0/2, 2 stopped" in out
    steps = {cell.path.name: cell.progress().step for cell in cells(tmp_path) if cell.progress()}
    assert [cell.status() for cell in cells(tmp_path)] == ["stopped"] * 2 and steps
    scheduler = start(name, "--jobs", "2", cwd=tmp_path)
    try:
        until(
            lambda: any(c.progress() and c.progress().step > steps.get(c.path.name, 0) for c in cells(tmp_path)), "more"
        )
        scheduler.send_signal(signal.SIGINT)  # as Ctrl-C: the cells save and end as well
        out, _ = scheduler.communicate(timeout=LONGEST_S)
    finally:
        scheduler.kill()
    assert running(tmp_path) == [] and "resumed from" in "".join(cell.log.read_text() for cell in cells(tmp_path))


@pytest.mark.long
def test_a_cell_whose_scheduler_dies_is_taken_over_and_not_trained_twice(tmp_path):
    name = write_grid(tmp_path, "set: {train.epochs: 12, data.dataset.exams: 256}\nseeds: [1]\n")
    scheduler = start(name, cwd=tmp_path)
    try:
        until(lambda: running(tmp_path) and running(tmp_path)[0].progress(), "first step")
        cell = running(tmp_path)[0]
        watcher = cell.holder()
        before = {process.pid for process in processes_of(cell)}
        assert watcher is not None and before
        os.kill(watcher.pid, signal.SIGKILL)
        until(lambda: cell.state().attempts == 2 and cell.status() == "running", "second attempt")
        assert before.isdisjoint(process.pid for process in processes_of(cell))
        out, _ = scheduler.communicate(timeout=LONGEST_S)
    finally:
        scheduler.kill()
    assert scheduler.returncode == 0 and cell.status() == "done", out
    all_records(cell.run)


@pytest.mark.long
def test_several_schedulers_share_a_grid(tmp_path):
    name = write_grid(tmp_path, "set: {train.epochs: 1}\nseeds: [1, 2, 3]\n")
    schedulers = [start(name, cwd=tmp_path) for _ in range(2)]
    outs = [scheduler.communicate(timeout=LONGEST_S)[0] for scheduler in schedulers]
    assert [scheduler.returncode for scheduler in schedulers] == [0, 0], outs
    assert [cell.state().attempts for cell in cells(tmp_path)] == [1, 1, 1]


def is_trained(folder: Path, attempt: int) -> bool:
    """Whether the one running cell is in this attempt and its training has started."""
    return any(cell.state().attempts == attempt and processes_of(cell) for cell in running(folder))


@pytest.mark.long
def test_a_cell_that_dies_repeatedly_counts_as_failed(tmp_path):
    name = write_grid(tmp_path, "attempts: 2\nset: {train.epochs: 40}\nseeds: [1]\n")
    scheduler = start(name, cwd=tmp_path)
    try:
        for attempt in (1, 2):
            until(partial(is_trained, tmp_path, attempt), f"attempt {attempt}")
            for process in processes_of(running(tmp_path)[0]):
                process.kill()
        out, _ = scheduler.communicate(timeout=LONGEST_S)
    finally:
        scheduler.kill()
    assert scheduler.returncode == 1 and "0/1, 1 failed" in out and "it was killed" in out


SEARCH = """
set: {train.epochs: 1, data.dataset.exams: 16, data.dataset.val_exams: 4, data.dataset.test_exams: 4}
search:
  method: tpe
  trials: TRIALS
  keys: {optimizer.lr: {low: 0.001, high: 0.1, log: true}, distiller.topics: [2, 3]}
"""


@pytest.mark.long
def test_a_search_runs_trials_in_sequence_and_continues_with_more(tmp_path):
    pytest.importorskip("optuna")
    name = write_grid(tmp_path, SEARCH.replace("TRIALS", "2"))
    ended = launch("grid", "run", name, cwd=tmp_path)
    first = {cell.path.name for cell in cells(tmp_path)}
    assert len(first) == 2 and ended.stdout.count("1/1") == 2
    write_grid(tmp_path, SEARCH.replace("TRIALS", "3"))
    launch("grid", "run", name, cwd=tmp_path)
    assert [cell.status() for cell in cells(tmp_path)] == ["done"] * 3
    assert [cell.state().attempts for cell in cells(tmp_path)] == [1] * 3
    assert first < {cell.path.name for cell in cells(tmp_path)}
    (journal,) = (tmp_path / "runs" / "grids" / "mine").glob("search-*.journal")
    values = [json.loads(line) for line in read_lines(journal)]
    scores = [json.loads((cell.run / "scores.json").read_text())["val"]["model"]["bleu_4"] for cell in cells(tmp_path)]
    assert sorted(row["values"][0] for row in values if row.get("values")) == pytest.approx(sorted(scores))


@pytest.mark.long
def test_a_trial_that_is_stopped_early_is_pruned_and_not_failed(tmp_path):
    name = write_grid(tmp_path, "set: {train.epochs: 40}\nseeds: [1]\n")
    scheduler = start(name, cwd=tmp_path)
    try:
        until(partial(is_trained, tmp_path, 1), "training")
        (cell,) = cells(tmp_path)
        until(lambda: cell.progress() is not None, "first step")
        cell.request_stop("pruned")
        out, _ = scheduler.communicate(timeout=LONGEST_S)
    finally:
        scheduler.kill()
    assert scheduler.returncode == 0 and "0/1, 1 pruned" in out and cell.status() == "pruned"
