"""What `grid run` and `grid cancel` do, between a grid and its scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from framework.grid.cell_folder import CellFolder, Status
from framework.grid.cells import Cell, rows_of
from framework.grid.executors import build_executor, choose_executor
from framework.grid.make import Grid
from framework.grid.scheduler import Fixed, Scheduler, Source, forget
from framework.registry import did_you_mean
from framework.runtime.console import print0

RETRIED: tuple[Status, ...] = ("failed", "pruned")


def run_grid(
    grid: Grid,
    *,
    executor: str | None = None,
    jobs: int | None = None,
    retry: str | None = None,
    fail_fast: bool = False,
    only: str | None = None,
) -> bool:
    """Trains the cells of a grid that are not done.

    Args:
        executor: plugin to start cells with; None: the grid's.
        jobs: cells at once.
        retry: status of cells that are started again although they are settled.
        only: a row by its label, or a text that the rows' labels hold.

    Returns:
        Whether all of them are done.
    """
    source = source_of(grid, only)
    starter = build_executor(grid.read, grid.folder, executor, jobs)
    if retry is not None:
        again = forget(source.cells(), [retry])  # type: ignore[list-item]
        print0(f"{len(again)} {retry} cell{'s' * (len(again) != 1)} to be started again")
    scheduler = Scheduler(
        name=grid.name,
        source=source,
        executor=starter,
        attempts=grid.read.said.attempts,
        fail_fast=fail_fast,
        cancel_file=_cancel_file(grid),
    )
    good = scheduler.run()
    failed = [digest for digest, status in scheduler.statuses.items() if status == "failed"]
    if failed and retry is None:
        print0(f"{len(failed)} failed; --retry failed starts them again")
    return good


def source_of(grid: Grid, only: str | None = None) -> Source:
    """The cells to be trained."""
    search = grid.read.said.search
    if search is not None and search.method == "tpe":
        if only is not None:
            raise ValueError("--only: a search by TPE has no rows to choose from; leave it out")
        from framework.grid.searching import SearchedCells

        return SearchedCells(grid)
    cells = [cell for cell in grid.cells if only in (None, cell.label, cell.title)]
    cells = cells or [cell for cell in grid.cells if only is not None and only in cell.title]
    if not cells:
        labels = list(rows_of(grid.cells))
        raise ValueError(f"--only: no cell holds {only!r}.{did_you_mean(only or '', labels)} Rows: {'; '.join(labels)}")
    return Fixed(cells)


def cells_of(grid: Grid) -> Sequence[Cell]:
    """All cells that are known by now."""
    return source_of(grid).cells()


def dry_rows(
    grid: Grid, only: str | None = None, executor: str | None = None
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of what `grid run` would find."""
    choose_executor(grid.read, executor)
    cells = source_of(grid, only).cells()
    rows: list[tuple[str, ...]] = [
        (cell.label, str(cell.seed), cell.digest, CellFolder.of(cell).status()) for cell in cells
    ]
    return ("cell", "seed", "hash", "status"), rows


def cancel_grid(grid: Grid) -> int:
    """Asks schedulers and cells to end, through files that all machines see. Returns how many cells run."""
    path = _cancel_file(grid)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    running = [folder for cell in cells_of(grid) if (folder := CellFolder.of(cell)).holder() is not None]
    for folder in running:
        folder.ask_to_stop("stopped")
    return len(running)


def _cancel_file(grid: Grid) -> Path:
    return grid.folder / "CANCEL"
