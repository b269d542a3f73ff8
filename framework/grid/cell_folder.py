"""The folder of a cell: recipe, run and state. All processes on all machines read the state of a cell from here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import (
    Any,
    Literal,
    Required,  # pydantic takes that of Python from 3.12 on
    TypeVar,
)

from pydantic import FiniteFloat, NonNegativeInt
from typing_extensions import TypedDict

from framework.grid.cells import Cell
from framework.grid.lease import Holder, holder_of
from framework.grid.results import CellResult
from framework.grid.state_file import parse_state, read_state
from framework.recipe import Recipe, save
from framework.run.listing import ENVIRONMENT
from framework.run.tracking import COST, RECORDS, write_json
from framework.runtime.errors import UserError
from framework.runtime.files import atomic_write
from framework.scoring.table import BASELINES, NOT_SCORES, VARIETY

CELLS = "cells"  # folder in run.root that all grids share, so that a common cell is trained once
RUN = "run"
T = TypeVar("T")
Status = Literal["queued", "running", "done", "failed", "stopped", "pruned"]
PRUNED: Status = "pruned"  # stopped early by a search
RECORD_HINT = "Delete the line; only curves and searches need it."
TAIL_BYTES = 65_536  # at the end of a file, for its last lines
SETTLED = ("done", "failed", "pruned")  # `grid run` resumes none of these without --retry


@dataclass(frozen=True)
class CellState:
    """The contents of state.json."""

    status: Status = "queued"
    attempts: NonNegativeInt = 0  # trainings that were started
    crashes: NonNegativeInt = (
        0  # attempts that were killed or lost a process, since the last one that saved a new checkpoint
    )
    saved_step: NonNegativeInt = 0  # of the newest checkpoint when the last attempt started
    seconds: FiniteFloat = 0.0  # of all attempts
    reason: str | None = None  # why the last attempt did not finish
    host: str | None = None  # of the last attempt


class Attempt(TypedDict):
    """The contents of attempt.json."""

    bytes: NonNegativeInt


class Launch(TypedDict, total=False):
    steps: NonNegativeInt


class Environment(TypedDict, total=False):
    """What a grid reads of a run's environment.json."""

    launch: Launch


class Cost(TypedDict, total=False):
    """The contents of a run's cost.json."""

    memory_gib: FiniteFloat
    parameters: NonNegativeInt


class Variety(TypedDict, total=False):
    """What a grid reads of the variety of a model's reports."""

    collapsed: bool


class SplitScores(TypedDict, total=False):
    """What a grid reads of a split in a run's scores.json: rows of the table, scores by name."""

    model: Required[dict[str, float]]
    random_report: dict[str, float]
    fixed_report: dict[str, float]
    frequent_reports: dict[str, float]
    nearest_image: dict[str, float]
    variety: Variety


class RunScores(TypedDict, total=False):
    """What a grid reads of a run's scores.json."""

    train: SplitScores
    val: SplitScores
    test: SplitScores


class Record(TypedDict):
    """A line of a run's metrics.jsonl."""

    step: NonNegativeInt
    name: str
    value: float


@dataclass(frozen=True)
class CellProgress:
    step: int
    steps: int
    seconds_left: float | None  # None before the first step of this attempt


@dataclass(frozen=True)
class Outcome:
    """How a training ended; the contents of outcome.json."""

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
            return self.stop_file.read_text(encoding="utf-8", errors="replace").strip() or "stopped"
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
            found = read_state(Outcome, self.outcome)
        except (FileNotFoundError, UserError):
            return None  # missing, or written in part
        return replace(found, reason=next((line for line in found.reason.splitlines() if line.strip()), "no reason"))

    def mark_attempt(self) -> None:
        """Stores the position in the records at which the new attempt starts."""
        records = self.run / RECORDS
        write_json(self.path / "attempt.json", {"bytes": records.stat().st_size if records.is_file() else 0})

    def prepare(self, recipe: Recipe) -> None:
        """Writes the recipe with this folder as its run folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        folder = recipe.run.model_copy(update={"root": str(self.path.parent), "name": RUN})
        own = recipe.model_copy(update={"run": folder, "resume": "auto"})
        text = save(own)
        if not self.recipe_file.is_file() or self.recipe_file.read_bytes() != text.encode():
            atomic_write(self.recipe_file, text)

    def state(self) -> CellState:
        return _read(CellState, self.path / "state.json") or CellState()

    def write(self, state: CellState) -> None:
        write_json(self.path / "state.json", asdict(state))

    def change(self, **values: Any) -> None:
        self.write(replace(self.state(), **values))

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete; its cost is the last file that it writes."""
        return (self.run / COST).is_file() and "test" in self._scores()

    def _scores(self) -> RunScores:
        hint = "Delete the file; grid run then scores the run again."
        return _read(RunScores, self.run / "scores.json", hint) or {}

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
        environment = _read(Environment, self.run / ENVIRONMENT) or {}
        steps = environment.get("launch", {}).get("steps")
        records = self.run / RECORDS
        if steps is None or not records.is_file():
            return None
        attempt = self.path / "attempt.json"
        size = records.stat().st_size
        earlier = min(size, (_read(Attempt, attempt) or Attempt(bytes=0))["bytes"])
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
        state, cost = self.state(), _read(Cost, self.run / COST) or {}
        status = self.status()
        done = status == "done"
        splits: Any = self._scores() if done else {}
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
    if not found:
        return None
    return parse_state(Record, found[0 if first else -1], records, RECORD_HINT)["step"]


def _read(schema: type[T], path: Path, hint: str = "Delete the file.") -> T | None:
    """The content of a state file; None if it does not exist.

    Raises:
        UserError: it is damaged.
    """
    try:
        return read_state(schema, path, hint)
    except FileNotFoundError:
        return None
