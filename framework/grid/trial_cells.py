"""The trials of a TPE search as cells, which a scheduler asks for one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from framework.grid.cell_folder import PRUNED, RECORD_HINT, CellFolder, Record, Status
from framework.grid.cells import Cell
from framework.grid.make import Grid, trial_cell
from framework.grid.scores import higher_is_better
from framework.grid.state_file import parse_state
from framework.grid.tpe import TpeSearch, Trial
from framework.recipe import recipe_hash
from framework.registry import did_you_mean
from framework.run.tracking import RECORDS
from framework.runtime.console import print0
from framework.runtime.errors import UserError, first_line
from framework.runtime.files import read_lines


class TrialCells:
    """The `Source` of a TPE search. Its state is the search's journal, so on the disk."""

    def __init__(self, grid: Grid) -> None:
        """
        Raises:
            UserError: Optuna is not installed.
        """
        search = grid.file.spec.search
        assert search is not None and grid.space is not None, grid.name
        self.grid, self.total = grid, search.trials
        self.monitor = search.monitor or f"val/{grid.base.evaluate.monitored}"
        self.search = TpeSearch(
            grid.folder,
            grid.space,
            search.trials,
            search.seed,
            higher_is_better(self.monitor, [grid.base]),
            None if search.prune is None else search.prune.after_epochs,
            subject=f"{recipe_hash(grid.base)} {self.monitor} {grid.file.spec.seeds}",
        )
        self.scoreless: set[int] = set()  # trials that are done without the monitor's score
        self.by_number: dict[int, Cell | None] = {}  # None: the values do not fit each other

    def cells(self) -> Sequence[Cell]:
        for trial in [*self.search.ended_trials(), *self.search.open_trials()]:
            if trial.number not in self.by_number:
                self._make(trial)
        return [cell for number in sorted(self.by_number) if (cell := self.by_number[number]) is not None]

    def more(self) -> Cell | None:
        while (trial := self.search.ask()) is not None:
            if (cell := self._make(trial, is_new=True)) is not None:
                return cell
        return None

    def update(self, statuses: Mapping[str, Status]) -> None:
        for trial in self.search.open_trials():
            self._update_trial(trial.number, statuses)
        for trial in self.search.ended_trials():
            if trial.status == "failed" and trial.number not in self.scoreless:  # a retry may succeed
                self._update_trial(trial.number, statuses)

    def _update_trial(self, number: int, statuses: Mapping[str, Status]) -> None:
        cell = self.by_number.get(number)
        if cell is None or cell.digest not in statuses:
            return
        status, folder = statuses[cell.digest], CellFolder.of(cell)
        if status == "done":
            scores = folder.result(cell).scores
            if self.monitor in scores:
                self.search.tell(number, scores[self.monitor], "done")
            else:
                self.scoreless.add(number)
                print0(f"trial {number} has no score '{self.monitor}'.{did_you_mean(self.monitor, scores)}")
                self.search.tell(number, None, "failed")
        elif status == "pruned" or status == "failed":
            self.search.tell(number, None, status)
        elif status == "running" and self._should_prune(number, folder):
            folder.request_stop(PRUNED)

    def _should_prune(self, number: int, folder: CellFolder) -> bool:
        """Reports the validations of a trial."""
        decisions = [
            self.search.report(number, epoch, value)
            for epoch, value in enumerate(validations(folder, self.monitor), start=1)
        ]
        return bool(decisions) and decisions[-1] and not folder.stop_file.exists()

    def _make(self, trial: Trial, *, is_new: bool = False) -> Cell | None:
        """The cell of a trial. If its values do not fit each other, None, and the trial fails."""
        try:
            cell = trial_cell(self.grid, trial.values)
        except UserError as error:
            self.by_number[trial.number] = None
            if is_new:
                print0(f"trial {trial.number} cannot be trained: {first_line(error)}")
                self.search.tell(trial.number, None, "failed")
            return None
        self.by_number[trial.number] = cell
        return cell


def validations(folder: CellFolder, monitor: str) -> list[float]:
    """The monitor's value after each validation so far."""
    path = folder.run / RECORDS
    if not path.is_file():
        return []
    rows = [
        parse_state(Record, line, f"{path}:{number}", RECORD_HINT)
        for number, line in enumerate(read_lines(path, errors="replace"), 1)
        if line.endswith("\n")  # the last one may be incomplete
    ]
    return [row["value"] for row in rows if row["name"] == monitor]
