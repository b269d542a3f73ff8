"""Cells that a search chooses by what the cells before them scored, as a scheduler asks for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from framework.grid.cell_folder import CellFolder, Status
from framework.grid.cells import Cell
from framework.grid.make import Grid, search_cell
from framework.grid.scores import higher_is_better
from framework.grid.search import TpeSearch, Trial
from framework.progress import say
from framework.recipe import RecipeError, recipe_hash

PRUNED = "pruned"


class SearchedCells:
    """The trials of a TPE search as cells. What they are stands in the search's journal, and so on the disk."""

    def __init__(self, grid: Grid) -> None:
        """
        Raises:
            ValueError: Optuna is not installed.
        """
        search = grid.read.said.search
        assert search is not None and grid.space is not None, grid.name
        self.grid, self.monitor = grid, search.monitor or grid.base.evaluate.monitor
        self.search = TpeSearch(
            grid.folder,
            grid.space,
            search.trials,
            search.seed,
            higher_is_better(self.monitor, [grid.base]),
            None if search.prune is None else search.prune.after_epochs,
            subject=f"{recipe_hash(grid.base)} {self.monitor}",
        )
        self.by_number: dict[int, Cell | None] = {}  # None: its values do not go together

    def cells(self) -> Sequence[Cell]:
        ended = [Trial(trial.number, trial.values) for trial in self.search.told()]
        for trial in [*ended, *self.search.open_trials()]:
            if trial.number not in self.by_number:
                self._make(trial)
        return [cell for number in sorted(self.by_number) if (cell := self.by_number[number]) is not None]

    def more(self) -> Cell | None:
        while (trial := self.search.ask()) is not None:
            if (cell := self._make(trial)) is not None:
                return cell
        return None

    def look(self, statuses: Mapping[str, Status]) -> None:
        """Tells the search what became of its trials, and ends those that it gives up."""
        failed = [trial.number for trial in self.search.told() if trial.status == "failed"]  # it may do better again
        for number in [*(trial.number for trial in self.search.open_trials()), *failed]:
            cell = self.by_number.get(number)
            status = None if cell is None else statuses.get(cell.digest)
            if cell is None or status is None:
                continue
            folder = CellFolder.of(cell)
            if status == "done":
                self.search.tell(number, folder.result(cell).scores[self.monitor], "done")
            elif status in ("pruned", "failed"):
                self.search.tell(number, None, status)
            elif status == "running" and self._gives_up(number, folder):
                folder.cancel.write_text(PRUNED, encoding="utf-8")

    @property
    def total(self) -> int:
        return self.search.trials

    def _gives_up(self, number: int, folder: CellFolder) -> bool:
        """Passes on the validations of a trial, and whether it should be ended."""
        told = [
            self.search.report(number, epoch, value)
            for epoch, value in enumerate(validations(folder, self.monitor), start=1)
        ]
        return bool(told) and told[-1] and not folder.cancel.exists()

    def _make(self, trial: Trial) -> Cell | None:
        """The cell of a trial; None, and the trial fails, where its values do not go together."""
        assert self.grid.space is not None, self.grid.name
        try:
            cell = search_cell(self.grid.maker, self.grid.space, trial.values)
        except RecipeError as error:
            say(f"trial {trial.number} cannot be trained: {error.lines[0]}")
            self.search.tell(trial.number, None, "failed")
            self.by_number[trial.number] = None
            return None
        self.by_number[trial.number] = cell
        return cell


def validations(folder: CellFolder, monitor: str) -> list[float]:
    """The monitor's value after each validation so far."""
    path = folder.run / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may still be written
    return [row["value"] for row in rows if row["name"] == monitor]
