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
from harness import ROOT, all_records, launch

from framework.grid.cell_folder import CellFolder
from framework.grid.cell_process import CELL

LONGEST_S = 300.0


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """`grid run` in the background, as a terminal would have it."""
    command = [sys.executable, str(ROOT / "launch.py"), "grid", "run", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def until(happens: Callable[[], object], what: str) -> None:
    patience = time.monotonic() + LONGEST_S
    while not happens():
        assert time.monotonic() < patience, f"no {what} within {LONGEST_S:.0f} s"
        time.sleep(0.1)


def cells(folder: Path) -> list[CellFolder]:
    return [CellFolder(path.with_suffix("")) for path in sorted((folder / "runs" / "cells").glob("*.yaml"))]


def running(folder: Path) -> list[CellFolder]:
    return [cell for cell in cells(folder) if cell.status() == "running"]


def training(cell: CellFolder) -> list[psutil.Process]:
    """All that trains a cell, but for the process that watches over it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(CELL) == str(cell.path.resolve()):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def killed_grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], CellFolder]:
    """The smoke grid after its scheduler and one of its cells were killed; what went on with it, and the cell."""
    folder = tmp_path_factory.mktemp("grid")
    scheduler = start("smoke", "--jobs", "2", cwd=folder)
    try:
        until(lambda: len(running(folder)) == 2, "two cells that run")
        victim = running(folder)[0]
        until(lambda: victim.progress() is not None, "first step")
        scheduler.kill()
        scheduler.wait()
        watcher = victim.holder()
        assert watcher is not None
        for process in training(victim):
            process.kill()
        os.kill(watcher.pid, signal.SIGKILL)
    finally:
        scheduler.kill()
    return folder, launch("grid", "run", "smoke", "--jobs", "2", cwd=folder), victim


def test_a_killed_grid_ends_with_every_cell_done_once(killed_grid):
    folder, _, victim = killed_grid
    assert [cell.status() for cell in cells(folder)] == ["done"] * 4
    attempts = {cell.path.name: cell.state().attempts for cell in cells(folder)}
    assert attempts == {name: 2 if name == victim.path.name else 1 for name in attempts}
    for cell in cells(folder):
        all_records(cell.run)  # a step that was made twice would stand twice


def test_it_ends_in_the_table_of_the_paper(killed_grid):
    folder, finished, _ = killed_grid
    out = finished.stdout
    assert "test/bleu_4" in out and "plain (baseline)" in out and out.count("2/2") == 2
    made = folder / "runs" / "grids" / "smoke"
    rows = list(csv.DictReader((made / "table.csv").open()))
    for row in rows:
        scores = [
            json.loads((cell.run / "scores.json").read_text())["test"]["model"]["bleu_4"]
            for cell in cells(folder)
            if ("weight: 0.0" in cell.recipe_file.read_text().split("topic:")[1][:30]) == (row["row"] == "plain")
        ]
        assert float(row["test/bleu_4 mean"]) == pytest.approx(sum(scores) / 2)
    assert "\\toprule" in (made / "table.tex").read_text() and "<table" in (made / "index.html").read_text()


def test_a_grid_that_is_done_is_not_run_again(killed_grid):
    folder, _, _ = killed_grid
    before = {cell.path.name: cell.state() for cell in cells(folder)}
    launch("grid", "run", "smoke", cwd=folder)
    assert {cell.path.name: cell.state() for cell in cells(folder)} == before


def test_status_tells_how_every_cell_stands(killed_grid):
    folder, _, victim = killed_grid
    rows = json.loads(launch("grid", "status", "smoke", "--json", cwd=folder).stdout)
    assert [row["status"] for row in rows] == ["done"] * 4 and victim.path.name in {row["hash"] for row in rows}
    told = launch("grid", "status", "smoke", "train.epochs=9", cwd=folder)
    assert "4 cells: 4 queued" in told.stdout  # others, of another recipe


def write_grid(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(f"recipe: shipped:smoke\n{text}", encoding="utf-8")
    return "mine.yaml"


@pytest.fixture(scope="module")
def failed_grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A grid one of whose cells has too few exams for its batch, which shows when it is started."""
    folder = tmp_path_factory.mktemp("failed")
    name = write_grid(folder, "set: {train.epochs: 1}\naxes: {train.batch_size: [512, 8]}\n")
    return folder, launch("grid", "run", name, "--jobs", "2", cwd=folder, check=False)


def test_a_cell_that_fails_is_told_with_its_reason_and_not_averaged_away(failed_grid):
    ended = failed_grid[1]
    assert ended.returncode == 1
    assert "train.batch_size: 512 is more than the 64 training exams" in ended.stdout
    assert "0/1, 1 failed" in ended.stdout and "1/1" in ended.stdout
    assert "--retry failed" in ended.stdout


def test_a_failed_cell_is_started_again_only_when_told(failed_grid):
    folder, _ = failed_grid
    told = launch("grid", "run", "mine.yaml", cwd=folder, check=False)
    assert told.returncode == 1 and sorted(cell.state().attempts for cell in cells(folder)) == [1, 1]
    told = launch("grid", "run", "mine.yaml", "--retry", "failed", "--only", "512", cwd=folder, check=False)
    assert told.returncode == 1 and "1 failed cell to be started again" in told.stdout
    assert {cell.status(): cell.state().attempts for cell in cells(folder)} == {"failed": 2, "done": 1}


def test_a_cell_is_chosen_by_its_label(failed_grid):
    folder, _ = failed_grid
    told = launch("grid", "run", "mine.yaml", "--dry-run", "--only", "batch_size=8", cwd=folder)
    assert len(told.stdout.splitlines()) == 2 and "done" in told.stdout
    told = launch("grid", "run", "mine.yaml", "--only", "batch=9", cwd=folder, check=False)
    assert told.returncode == 2 and "no cell holds 'batch=9'" in told.stderr


@pytest.mark.long
def test_a_cancelled_grid_saves_and_goes_on(tmp_path):
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
def test_a_cell_whose_watcher_dies_is_taken_over_and_not_trained_twice(tmp_path):
    name = write_grid(tmp_path, "set: {train.epochs: 12, data.dataset.exams: 256}\nseeds: [1]\n")
    scheduler = start(name, cwd=tmp_path)
    try:
        until(lambda: running(tmp_path) and running(tmp_path)[0].progress(), "first step")
        cell = running(tmp_path)[0]
        watcher = cell.holder()
        before = {process.pid for process in training(cell)}
        assert watcher is not None and before
        os.kill(watcher.pid, signal.SIGKILL)
        until(lambda: cell.state().attempts == 2 and cell.status() == "running", "second attempt")
        assert before.isdisjoint(process.pid for process in training(cell))
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
    """Whether the one cell that runs is in this attempt, and its training has begun."""
    return any(cell.state().attempts == attempt and training(cell) for cell in running(folder))


@pytest.mark.long
def test_a_cell_that_dies_again_and_again_counts_as_failed(tmp_path):
    name = write_grid(tmp_path, "attempts: 2\nset: {train.epochs: 40}\nseeds: [1]\n")
    scheduler = start(name, cwd=tmp_path)
    try:
        for attempt in (1, 2):
            until(partial(is_trained, tmp_path, attempt), f"attempt {attempt}")
            for process in training(running(tmp_path)[0]):
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
def test_a_search_asks_for_trials_one_after_another_and_goes_on_with_more(tmp_path):
    pytest.importorskip("optuna")
    name = write_grid(tmp_path, SEARCH.replace("TRIALS", "2"))
    told = launch("grid", "run", name, cwd=tmp_path)
    first = {cell.path.name for cell in cells(tmp_path)}
    assert len(first) == 2 and told.stdout.count("1/1") == 2
    write_grid(tmp_path, SEARCH.replace("TRIALS", "3"))
    launch("grid", "run", name, cwd=tmp_path)
    assert [cell.status() for cell in cells(tmp_path)] == ["done"] * 3
    assert [cell.state().attempts for cell in cells(tmp_path)] == [1] * 3
    assert first < {cell.path.name for cell in cells(tmp_path)}
    (journal,) = (tmp_path / "runs" / "grids" / "mine").glob("search-*.journal")
    values = [json.loads(line) for line in journal.read_text().splitlines()]
    scores = [json.loads((cell.run / "scores.json").read_text())["val"]["model"]["bleu_4"] for cell in cells(tmp_path)]
    assert sorted(row["values"][0] for row in values if row.get("values")) == pytest.approx(sorted(scores))


@pytest.mark.long
def test_a_trial_that_is_given_up_is_pruned_and_no_failure(tmp_path):
    name = write_grid(tmp_path, "set: {train.epochs: 40}\nseeds: [1]\n")
    scheduler = start(name, cwd=tmp_path)
    try:
        until(partial(is_trained, tmp_path, 1), "training")
        (cell,) = cells(tmp_path)
        until(lambda: cell.progress() is not None, "first step")
        cell.ask_to_stop("pruned")
        out, _ = scheduler.communicate(timeout=LONGEST_S)
    finally:
        scheduler.kill()
    assert scheduler.returncode == 0 and "0/1, 1 pruned" in out and cell.status() == "pruned"
