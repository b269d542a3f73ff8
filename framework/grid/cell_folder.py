"""A cell on the disk: its recipe, its run, and how it stands. Whoever looks, on whatever machine, reads it here."""

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
from framework.runtime.files import atomic_write

CELLS = "cells"  # in run.root, shared by all grids: what one has trained, another need not
RUN = "run"
Status = Literal["queued", "running", "done", "failed", "stopped", "pruned"]
PRUNED: Status = "pruned"  # given up by a search
TAIL_BYTES = 65_536  # of the records, which hold the latest step
SETTLED = ("done", "failed", "pruned")  # what no `grid run` goes on with unless told


@dataclass(frozen=True)
class CellState:
    """What is known of a cell's trainings so far, in state.json."""

    status: Status = "queued"
    attempts: int = 0  # trainings that were started
    deaths: int = 0  # of those, ones that were killed or lost a process, since the last one that got any further
    saved_step: int = 0  # of the newest checkpoint when the last one began
    seconds: float = 0.0  # that they took together
    reason: str | None = None  # why the last one did not finish
    host: str | None = None  # where the last one ran


@dataclass(frozen=True)
class CellProgress:
    step: int
    steps: int
    seconds_left: float | None  # None until this attempt has made a step


class Outcome(NamedTuple):
    """How a training ended."""

    code: int  # of framework.runtime.errors
    reason: str


class CellFolder:
    """`cells/HASH/`, with `cells/HASH.yaml` beside it."""

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
        """What its trainings printed."""
        return self.path / "log.txt"

    @property
    def outcome(self) -> Path:
        """How a training ended, by its own words; there is none of one that was killed."""
        return self.path / "outcome.json"

    @property
    def stop_file(self) -> Path:
        return self.path / "CANCEL"

    def ask_to_stop(self, status: Status) -> None:
        """Asks whoever trains the cell, on whatever machine, to save and stop.

        Args:
            status: what the cell then has: stopped or pruned.
        """
        atomic_write(self.stop_file, status)

    def asked_to_stop(self) -> str | None:
        """The status that the cell shall have; None where nobody asked."""
        try:
            return self.stop_file.read_text(encoding="utf-8").strip() or "stopped"
        except OSError:
            return None  # none, or a disk that is away for a moment

    @property
    def was_asked_to_stop(self) -> bool:
        """Whether it was, by `grid cancel` or as any run; not so where its machine was taken away."""
        return self.stop_file.exists() or (self.run / "STOP").exists()

    def last_words(self) -> str:
        """The end of what its trainings printed."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace")[-TAIL_BYTES:].splitlines()
        except OSError:
            return "nothing"
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")

    def told(self) -> Outcome | None:
        """How a training ended, by its own words; None of one that was killed."""
        try:
            told = _read(self.outcome)
        except ValueError:
            return None  # broken off
        if not told:
            return None
        said = next((line for line in told["reason"].splitlines() if line.strip()), "it did not say why")
        return Outcome(told["code"], said)

    def begin(self) -> None:
        """Notes that a training begins: what was recorded before is not its own."""
        records = self.run / RECORDS
        write_json(self.path / "begin.json", {"bytes": records.stat().st_size if records.is_file() else 0})

    def prepare(self, recipe: Recipe) -> None:
        """Writes the recipe that is trained here, so that its run lies in this folder."""
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
        """Whether the run has come to its end; the note of its cost is what it writes last."""
        return (self.run / COST).is_file() and "test" in _read(self.run / "scores.json")

    def status(self) -> Status:
        return "running" if self.holder() is not None else self.status_at_rest()

    def status_at_rest(self) -> Status:
        """The status of a cell that nobody else trains."""
        status = self.state().status
        if status == "done" and not self.is_finished:
            return "queued"  # its run was taken away
        return "queued" if status == "running" else status  # whoever was training it is dead

    def holder(self) -> Holder | None:
        """Who trains it now."""
        return holder_of(self.path)

    def saved_step(self) -> int:
        """Of the newest checkpoint; 0: there is none."""
        whole = (self.run / "checkpoints").glob("step-*/manifest.json")
        return max((int(path.parent.name.removeprefix("step-")) for path in whole), default=0)

    def progress(self) -> CellProgress | None:
        """How far the training is; None before its first step."""
        steps = _read(self.run / "environment.json").get("launch", {}).get("steps")
        records = self.run / RECORDS
        if steps is None or not records.is_file():
            return None
        begin = self.path / "begin.json"
        earlier = _read(begin).get("bytes", 0)
        size = records.stat().st_size
        last = _step(records, max(0, size - TAIL_BYTES), size, first=False)
        if last is None:
            return None
        first = _step(records, earlier, min(size, earlier + TAIL_BYTES), first=True)
        left = None
        if first is not None and last > first:
            left = (steps - last) * (records.stat().st_mtime - begin.stat().st_mtime) / (last - first)
        return CellProgress(last, steps, left)

    def result(self, cell: Cell) -> CellResult:
        """The cell as tables show it."""
        state, cost = self.state(), _read(self.run / COST)
        status = self.status()
        done = status == "done"
        scores = _read(self.run / "scores.json") if done else {}
        return CellResult(
            digest=cell.digest,
            settings=cell.settings,
            seed=cell.seed,
            status=status,
            run=self.run,
            scores={
                f"{split}/{name}": value
                for split, rows in scores.items()
                if isinstance(rows, dict)
                for name, value in rows["model"].items()
                if name != "exams"
            },
            seconds=state.seconds if done else None,
            memory_gib=cost.get("memory_gib"),
            parameters=cost.get("parameters"),
            error=state.reason if status in ("failed", "stopped") else None,
        )


def _step(records: Path, begin: int, end: int, *, first: bool) -> int | None:
    """The first or the last step of training that is recorded between two places of the file; None: there is none."""
    with records.open("rb") as file:
        file.seek(begin)
        lines = file.read(end - begin).splitlines()
    found = [line for line in lines if line.startswith(b'{"step"') and line.endswith(b"}") and b'"train/' in line]
    return json.loads(found[0 if first else -1])["step"] if found else None


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of ours; {} where there is none yet.

    Raises:
        ValueError: it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); take it away") from None
    assert isinstance(found, dict), path
    return found
