"""A cell on the disk: its recipe, its run, and how it stands. Whoever looks, on whatever machine, reads it here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from framework.grid.cells import Cell
from framework.grid.lease import Holder, holder_of
from framework.grid.results import CellResult
from framework.recipe import Recipe, save
from framework.recipe.schema import Run
from framework.tracking import COST, write_json
from framework.whole_file import write_whole

CELLS = "cells"  # in run.root, shared by all grids: what one has trained, another need not
RUN = "run"
Status = Literal["queued", "running", "done", "failed", "stopped", "pruned"]
SETTLED = ("done", "failed", "pruned")  # what no `grid run` goes on with unless told


@dataclass(frozen=True)
class CellState:
    """What is known of a cell's trainings so far, in state.json."""

    status: Status = "queued"
    attempts: int = 0  # trainings that were started
    deaths: int = 0  # of those, since the last that ended in its own way, ones that were killed or lost a process
    seconds: float = 0.0  # that they took together
    reason: str | None = None  # why the last one did not finish
    host: str | None = None  # where the last one ran


@dataclass(frozen=True)
class CellProgress:
    step: int
    steps: int
    seconds_left: float | None  # None until this attempt has made a step


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
    def cancel(self) -> Path:
        """A file that asks whoever trains the cell to stop; its text is the status that the cell then has."""
        return self.path / "CANCEL"

    def prepare(self, recipe: Recipe) -> None:
        """Writes the recipe that is trained here, so that its run lies in this folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        own = recipe.model_copy(update={"run": Run(root=str(self.path.parent), name=RUN), "resume": "auto"})
        text = save(own)
        if not self.recipe_file.is_file() or self.recipe_file.read_text(encoding="utf-8") != text:
            write_whole(self.recipe_file, text)

    def state(self) -> CellState:
        return CellState(**_read(self.path / "state.json"))

    def write(self, state: CellState) -> None:
        write_json(self.path / "state.json", asdict(state))

    def change(self, **values: Any) -> None:
        self.write(replace(self.state(), **values))

    @property
    def has_scores(self) -> bool:
        return "test" in _read(self.run / "scores.json")

    def status(self) -> Status:
        return "running" if self.holder() is not None else self.status_at_rest()

    def status_at_rest(self) -> Status:
        """The status of a cell that nobody else trains."""
        status = self.state().status
        if status == "done" and not self.has_scores:
            return "queued"  # its run was taken away
        return "queued" if status == "running" else status  # whoever was training it is dead

    def holder(self) -> Holder | None:
        """Who trains it now."""
        return holder_of(self.path)

    def progress(self) -> CellProgress | None:
        """How far the training is; None before its first step."""
        steps = _read(self.run / "environment.json").get("launch", {}).get("steps")
        records = self.run / "metrics.jsonl"
        if steps is None or not records.is_file():
            return None
        lines = records.read_text(encoding="utf-8").splitlines()
        made = [json.loads(line) for line in lines[-64:] if line.endswith("}")]
        train = [row["step"] for row in made if row["name"].startswith("train/")]
        if not train:
            return None
        begin = _read(self.path / "begin.json")
        gained = train[-1] - begin.get("step", 0)
        passed = records.stat().st_mtime - begin.get("time", records.stat().st_mtime)
        left = (steps - train[-1]) * passed / gained if gained > 0 and passed > 0 else None
        return CellProgress(train[-1], steps, left)

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


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of ours; {} where there is none yet."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    assert isinstance(found, dict), path
    return found
