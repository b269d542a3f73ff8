"""Cells that a search chooses by what the cells before them scored, as a scheduler asks for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from framework.grid.cell_folder import PRUNED, CellFolder, Status
from framework.grid.cells import Cell
from framework.grid.make import Grid, search_cell
from framework.grid.scores import higher_is_better
from framework.grid.search import TpeSearch, Trial
from framework.recipe import RecipeError, recipe_hash
from framework.registry import did_you_mean
from framework.run.tracking import RECORDS
from framework.runtime.console import print0


class SearchedCells:
    """The trials of a TPE search as cells. What they are stands in the search's journal, and so on the disk."""

    def __init__(self, grid: Grid) -> None:
        """
        Raises:
            ValueError: Optuna is not installed.
        """
        search = grid.read.said.search
        assert search is not None and grid.space is not None, grid.name
        self.grid, self.monitor = grid, search.monitor or f"val/{grid.base.evaluate.monitored}"
        self.search = TpeSearch(
            grid.folder,
            grid.space,
            search.trials,
            search.seed,
            higher_is_better(self.monitor, [grid.base]),
            None if search.prune is None else search.prune.after_epochs,
            subject=f"{recipe_hash(grid.base)} {self.monitor} {grid.read.said.seeds}",
        )
        self.scoreless: set[int] = set()  # trials that are done without the monitor's score
        self.by_number: dict[int, Cell | None] = {}  # None: its values do not go together

    def cells(self) -> Sequence[Cell]:
        ended = [Trial(trial.number, trial.values) for trial in self.search.told()]
        for trial in [*ended, *self.search.open_trials()]:
            if trial.number not in self.by_number:
                self._make(trial)
        return [cell for number in sorted(self.by_number) if (cell := self.by_number[number]) is not None]

    def more(self) -> Cell | None:
        while (trial := self.search.ask()) is not None:
            if (cell := self._make(trial, new=True)) is not None:
                return cell
        return None

    def look(self, statuses: Mapping[str, Status]) -> None:
        """Tells the search what became of its trials, and ends those that it gives up."""
        for trial in self.search.open_trials():
            self._look_at(trial.number, statuses)
        for told in self.search.told():
            if told.status == "failed" and told.number not in self.scoreless:  # it may do better when it is tried again
                self._look_at(told.number, statuses)

    def _look_at(self, number: int, statuses: Mapping[str, Status]) -> None:
        cell = self.by_number.get(number)
        if cell is None or cell.digest not in statuses:
            return
        status, folder = statuses[cell.digest], CellFolder.of(cell)
        if status == "done":
            self._tell_done(number, cell, folder)
        elif status == "pruned" or status == "failed":
            self.search.tell(number, None, status)
        elif status == "running" and self._gives_up(number, folder):
            folder.ask_to_stop(PRUNED)

    @property
    def total(self) -> int:
        return self.search.trials

    def _tell_done(self, number: int, cell: Cell, folder: CellFolder) -> None:
        scores = folder.result(cell).scores
        if self.monitor in scores:
            self.search.tell(number, scores[self.monitor], "done")
        else:
            self.scoreless.add(number)
            print0(f"trial {number} has no score '{self.monitor}'.{did_you_mean(self.monitor, scores)}")
            self.search.tell(number, None, "failed")

    def _gives_up(self, number: int, folder: CellFolder) -> bool:
        """Passes on the validations of a trial, and whether it should be ended."""
        told = [
            self.search.report(number, epoch, value)
            for epoch, value in enumerate(validations(folder, self.monitor), start=1)
        ]
        return bool(told) and told[-1] and not folder.stop_file.exists()

    def _make(self, trial: Trial, *, new: bool = False) -> Cell | None:
        """The cell of a trial; None, and the trial fails, where its values do not go together."""
        assert self.grid.space is not None, self.grid.name
        try:
            cell = search_cell(self.grid.maker, self.grid.space, trial.values)
        except RecipeError as error:
            self.by_number[trial.number] = None
            if new:
                print0(f"trial {trial.number} cannot be trained: {error.lines[0]}")
                self.search.tell(trial.number, None, "failed")
            return None
        self.by_number[trial.number] = cell
        return cell


def validations(folder: CellFolder, monitor: str) -> list[float]:
    """The monitor's value after each validation so far."""
    path = folder.run / RECORDS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may still be written
    return [row["value"] for row in rows if row["name"] == monitor]
