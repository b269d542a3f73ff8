"""The folder of a cell: recipe, run and state. All processes on all machines read the state of a cell from here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from framework.grid.cells import Cell
from framework.grid.lease import Holder, holder_of
from framework.grid.results import CellResult
from framework.recipe import Recipe, save
from framework.recipe.schema import Run
from framework.run.tracking import COST, RECORDS, write_json
from framework.runtime.files import atomic_write, read_object
from framework.scoring.table import BASELINES, NOT_SCORES, VARIETY

CELLS = "cells"  # folder in run.root that all grids share, so that a common cell is trained once
RUN = "run"
Status = Literal["queued", "running", "done", "failed", "stopped", "pruned"]
PRUNED: Status = "pruned"  # stopped early by a search
TAIL_BYTES = 65_536  # at the end of a file, for its last lines
SETTLED = ("done", "failed", "pruned")  # `grid run` resumes none of these without --retry


@dataclass(frozen=True)
class CellState:
    """The contents of state.json."""

    status: Status = "queued"
    attempts: int = 0  # trainings that were started
    crashes: int = 0  # attempts that were killed or lost a process, since the last one that saved a new checkpoint
    saved_step: int = 0  # of the newest checkpoint when the last attempt started
    seconds: float = 0.0  # of all attempts
    reason: str | None = None  # why the last attempt did not finish
    host: str | None = None  # of the last attempt


@dataclass(frozen=True)
class CellProgress:
    step: int
    steps: int
    seconds_left: float | None  # None before the first step of this attempt


class Outcome(NamedTuple):
    """How a training ended."""

    code: int  # of framework.runtime.errors
    reason: str


class CellFolder:
    """`cells/HASH/`, next to `cells/HASH.yaml`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, cell: Cell) -> CellFolder:
        return cls(Path(cell.recipe.run.root) / CELLS / cell.digest)

    @property
    def recipe_file(self) -> Path:
        return self.path.with_suffix(".yaml")

    @property
    def run(self) -> Path:
        return self.path / RUN

    @property
    def log(self) -> Path:
        """The output of all attempts."""
        return self.path / "log.txt"

    @property
    def outcome(self) -> Path:
        """Written by a training that ended by itself; missing after one that was killed."""
        return self.path / "outcome.json"

    @property
    def stop_file(self) -> Path:
        return self.path / "CANCEL"

    def request_stop(self, status: Status) -> None:
        """Asks the process that trains the cell, on any machine, to save and stop.

        Args:
            status: of the cell afterwards: stopped or pruned.
        """
        atomic_write(self.stop_file, status)

    def stop_request(self) -> str | None:
        """The requested status; None without a request."""
        try:
            return self.stop_file.read_text(encoding="utf-8").strip() or "stopped"
        except OSError:
            return None  # no file, or a disk that does not answer for a moment

    @property
    def has_stop_request(self) -> bool:
        """Whether a user asked it to stop, by `grid cancel` or by the run's STOP file; False after preemption."""
        return self.stop_file.exists() or (self.run / "STOP").exists()

    def last_log_line(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace")[-TAIL_BYTES:].splitlines()
        except OSError:
            return "nothing"
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")

    def read_outcome(self) -> Outcome | None:
        """How the last attempt ended; None if it was killed."""
        try:
            found = _read(self.outcome)
        except ValueError:
            return None  # written in part
        if not found:
            return None
        return Outcome(
            found["code"], next((line for line in found["reason"].splitlines() if line.strip()), "no reason")
        )

    def mark_attempt(self) -> None:
        """Stores the position in the records at which the new attempt starts."""
        records = self.run / RECORDS
        write_json(self.path / "attempt.json", {"bytes": records.stat().st_size if records.is_file() else 0})

    def prepare(self, recipe: Recipe) -> None:
        """Writes the recipe with this folder as its run folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        own = recipe.model_copy(update={"run": Run(root=str(self.path.parent), name=RUN), "resume": "auto"})
        text = save(own)
        if not self.recipe_file.is_file() or self.recipe_file.read_text(encoding="utf-8") != text:
            atomic_write(self.recipe_file, text)

    def state(self) -> CellState:
        found = _read(self.path / "state.json")
        return CellState(**{key: value for key, value in found.items() if key in CellState.__annotations__})

    def write(self, state: CellState) -> None:
        write_json(self.path / "state.json", asdict(state))

    def change(self, **values: Any) -> None:
        self.write(replace(self.state(), **values))

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete; its cost is the last file that it writes."""
        return (self.run / COST).is_file() and "test" in _read(self.run / "scores.json")

    def status(self) -> Status:
        return "running" if self.holder() is not None else self.status_at_rest()

    def status_at_rest(self) -> Status:
        """The status if no other process trains the cell."""
        status = self.state().status
        if status == "done" and not self.is_finished:
            return "queued"  # the run folder was removed
        return "queued" if status == "running" else status  # the process that trained it is dead

    def holder(self) -> Holder | None:
        """The process that trains the cell now."""
        return holder_of(self.path)

    def saved_step(self) -> int:
        """Step of the newest checkpoint; 0 without one."""
        whole = (self.run / "checkpoints").glob("step-*/manifest.json")
        return max((int(path.parent.name.removeprefix("step-")) for path in whole), default=0)

    def progress(self) -> CellProgress | None:
        """Step and remaining time; None before the first step."""
        steps = _read(self.run / "environment.json").get("launch", {}).get("steps")
        records = self.run / RECORDS
        if steps is None or not records.is_file():
            return None
        attempt = self.path / "attempt.json"
        earlier = _read(attempt).get("bytes", 0)
        size = records.stat().st_size
        last = _step(records, max(0, size - TAIL_BYTES), size, first=False)
        if last is None:
            return None
        first = _step(records, earlier, min(size, earlier + TAIL_BYTES), first=True)
        left = None
        if first is not None and last > first:
            left = (steps - last) * (records.stat().st_mtime - attempt.stat().st_mtime) / (last - first)
        return CellProgress(last, steps, left)

    def result(self, cell: Cell) -> CellResult:
        """The cell as the result table shows it."""
        state, cost = self.state(), _read(self.run / COST)
        status = self.status()
        done = status == "done"
        stored = _read(self.run / "scores.json") if done else {}
        splits = {split: rows for split, rows in stored.items() if isinstance(rows, dict)}
        return CellResult(
            digest=cell.digest,
            settings=cell.settings,
            seed=cell.seed,
            status=status,
            run=self.run,
            scores={
                f"{split}/{name}": value
                for split, rows in splits.items()
                for name, value in rows["model"].items()
                if name not in NOT_SCORES
            },
            seconds=state.seconds if done else None,
            memory_gib=cost.get("memory_gib"),
            parameters=cost.get("parameters"),
            error=state.reason if status in ("failed", "stopped") else None,
            baselines={
                f"{split}/{name}": {each: rows[each][name] for each in BASELINES if name in rows.get(each, {})}
                for split, rows in splits.items()
                for name in rows["model"]
                if name not in NOT_SCORES
            },
            collapsed=splits.get("test", {}).get(VARIETY, {}).get("collapsed", False),
        )


def _step(records: Path, start: int, end: int, *, first: bool) -> int | None:
    """The first or the last recorded training step between two positions of the file; None without one."""
    with records.open("rb") as file:
        file.seek(start)
        lines = file.read(end - start).splitlines()
    found = [line for line in lines if line.startswith(b'{"step"') and line.endswith(b"}") and b'"train/' in line]
    return json.loads(found[0 if first else -1])["step"] if found else None


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; {} if it does not exist.

    Raises:
        UserError: it is damaged.
    """
    try:
        return read_object(path, "Delete the file.")
    except FileNotFoundError:
        return {}
