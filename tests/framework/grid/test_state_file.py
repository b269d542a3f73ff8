"""Each file in which a grid keeps its state may be edited by hand: the commands name a damaged file, or work."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework.grid import scheduler
from framework.grid.cell_folder import CellFolder
from framework.grid.commands import dry_rows, source_of, status_rows
from framework.grid.executor import Job
from framework.grid.file import read_grid
from framework.grid.lease import this_machine
from framework.grid.make import Grid, make_grid
from framework.grid.report import grid_result
from framework.grid.scheduler import Scheduler
from framework.runtime.errors import UserError

RECORD = {"step": 1, "name": "train/loss", "value": 1.0}
REPORT = {"id": "e1", "reference": "a cyst", "prediction": "a cyst"}
# By path below the folder of a cell.
FILES: dict[str, dict[str, Any]] = {
    "state.json": {
        "status": "done", "attempts": 1, "crashes": 0, "saved_step": 1, "seconds": 1.0, "reason": None, "host": "h",
    },
    "lease-1": {"machine": this_machine(), "host": "h", "pid": os.getpid(), "start_time": 0.0, "since": "now"},
    "attempt.json": {"bytes": 0},
    "outcome.json": {"code": 2, "reason": "no data"},
    "run/cost.json": {"parameters": 10, "memory_gib": 0.1},
    "run/environment.json": {"launch": {"steps": 4}},
    "run/scores.json": {"segmentation": "words", "test": {"model": {"bleu_4": 0.5}}, "val": {"model": {"bleu_4": 0.5}}},
    "run/metrics.jsonl": RECORD,
    "run/predictions/test.jsonl": REPORT,
}  # fmt: skip
OF_LINES = ("run/metrics.jsonl", "run/predictions/test.jsonl")
WRONG = ["", "x", "\udcff", 0, -1, 10**400, 1.5, float("nan"), float("inf"), None, True, [], {}, [[]], {"a": 1}]
DAMAGED = {
    "empty": b"", "cut": b'{"status": "do', "no JSON": b"done\n", "no UTF-8": b"\xff\xfe{}\n", "a list": b"[]\n",
    "a number": b"1\n", "a text": b'"x"\n', "null": b"null\n", "NaN": b"NaN\n", "deep": b"[" * 9_999,
    "no keys": b"{}\n", "unknown key": b'{"colour": 1}\n', "zeros": bytes(64),
}  # fmt: skip


def edited(value: Any) -> Iterator[Any]:
    """The value with each of its keys removed or given a wrong value, at every depth."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        yield {name: item for name, item in value.items() if name != key}
        for wrong in WRONG:
            yield {**value, key: wrong}
        for other in edited(inner):
            yield {**value, key: other}


def contents(name: str) -> Iterator[bytes]:
    yield from DAMAGED.values()
    for value in edited(FILES[name]):
        yield f"{json.dumps(value)}\n".encode()


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    text = "recipe: shipped:smoke\naxes: {train.seed: [1, 2]}\nreport: {metrics: [test/bleu_4]}\n"
    (tmp_path / "mine.yaml").write_text(text)
    made = make_grid(read_grid(tmp_path / "mine.yaml"), [f"run.root={tmp_path / 'runs'}"])
    for cell in made.cells:
        for name, value in FILES.items():
            path = CellFolder.of(cell).path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{json.dumps(value)}\n")
    return made


class NothingStarts:
    """An executor whose jobs end at once."""

    processes = 1

    def room(self) -> int:
        return 1

    def start(self, jobs: list[Job]) -> list[NothingStarts]:
        return [self for _ in jobs]

    def state(self) -> str:
        return "gone"

    def cancel(self) -> None: ...

    def close(self) -> None: ...


def run_grid(grid: Grid) -> None:
    executor: Any = NothingStarts()
    Scheduler("mine", source_of(grid), executor, attempts=1, cancel_file=grid.folder / "CANCEL").run()


COMMANDS = {
    "status": lambda grid: status_rows(grid.cells),
    "report": grid_result,
    "run --dry-run": dry_rows,
    "run": run_grid,
}


def damage(grid: Grid, name: str, content: bytes) -> Path:
    folder = CellFolder.of(grid.cells[0]).path
    for other, value in FILES.items():
        (folder / other).write_text(f"{json.dumps(value)}\n")
    (folder / name).write_bytes(content)
    os.utime(folder / "lease-1", (0, 0))  # a holder on another machine is dead
    return folder / name


def only_names(error: UserError, path: Path) -> None:
    assert error.code in ("damaged-file", "unreadable-file"), error
    assert re.sub(r":\d+$", "", error.place) == str(path), error


@pytest.mark.parametrize("name", FILES)
def test_commands_of_a_grid_name_a_state_file_that_was_edited_or_work(
    name: str, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "POLL_S", 0.0)
    refused = 0
    for content in contents(name):
        path = damage(grid, name, content)
        for command in COMMANDS.values():
            try:
                command(grid)
            except UserError as error:
                only_names(error, path)
                refused += 1
    assert refused or name in ("attempt.json", "outcome.json", "run/environment.json", *OF_LINES)


@pytest.mark.parametrize("name", ["attempt.json", "run/environment.json", "run/metrics.jsonl"])
def test_the_progress_of_a_cell_names_a_file_that_was_edited(name: str, grid: Grid) -> None:
    refused = 0
    for content in contents(name):
        path = damage(grid, name, content)
        try:
            CellFolder(path.parents[name.count("/")]).progress()
        except UserError as error:
            only_names(error, path)
            refused += 1
    assert refused


def test_an_outcome_that_was_written_in_part_counts_as_none(grid: Grid) -> None:
    for content in contents("outcome.json"):
        CellFolder(damage(grid, "outcome.json", content).parent).read_outcome()
