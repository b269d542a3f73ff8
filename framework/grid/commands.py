"""The functions behind `grid run`, `grid status` and `grid cancel`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from framework.grid.cell_folder import CellFolder, Status
from framework.grid.cells import Cell, cells_by_row
from framework.grid.executor import build_executor, choose_executor
from framework.grid.make import Grid
from framework.grid.scheduler import FixedCells, Scheduler, Source, requeue
from framework.registry import did_you_mean
from framework.runtime.console import print0
from framework.runtime.errors import UserError
from framework.runtime.live import time_text

RETRIED: tuple[Status, ...] = ("failed", "pruned")
STATUS_HEADER = ("cell", "seed", "hash", "status", "progress", "time", "where, or what went wrong")


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
        executor: plugin that starts the cells; None: the grid's.
        jobs: maximum number of cells at once.
        retry: status of settled cells to start again.
        only: label of a row, or part of it.

    Returns:
        Whether all of them are done.
    """
    source = source_of(grid, only)
    built = build_executor(grid.file, grid.folder, executor, jobs)
    if retry is not None:
        again = requeue(source.cells(), [retry])  # type: ignore[list-item]
        print0(f"{len(again)} {retry} cell{'s' * (len(again) != 1)} to start again")
    scheduler = Scheduler(
        name=grid.name,
        source=source,
        executor=built,
        attempts=grid.file.spec.attempts,
        fail_fast=fail_fast,
        cancel_file=_cancel_file(grid),
    )
    is_complete = scheduler.run()
    failed = [digest for digest, status in scheduler.statuses.items() if status == "failed"]
    if failed and retry is None:
        print0(f"{len(failed)} failed; --retry failed starts them again")
    return is_complete


def source_of(grid: Grid, only: str | None = None) -> Source:
    """The cells to train."""
    search = grid.file.spec.search
    if search is not None and search.method == "tpe":
        if only is not None:
            raise UserError("ignored-setting", "a TPE search has no rows to choose from", place="--only")
        from framework.grid.trial_cells import TrialCells

        return TrialCells(grid)
    cells = [cell for cell in grid.cells if only in (None, cell.label, cell.title)]
    cells = cells or [cell for cell in grid.cells if only is not None and only in cell.title]
    if not cells:
        labels = list(cells_by_row(grid.cells))
        hint = f"{did_you_mean(only or '', labels)} Rows: {'; '.join(labels)}".strip()
        raise UserError("unknown-name", f"no label contains {only!r}", place="--only", hint=hint)
    return FixedCells(cells)


def cells_of(grid: Grid) -> Sequence[Cell]:
    """All cells that are known so far."""
    return source_of(grid).cells()


def dry_rows(
    grid: Grid, only: str | None = None, executor: str | None = None
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the cells that `grid run` would find."""
    choose_executor(grid.file, executor)
    cells = source_of(grid, only).cells()
    rows = [(cell.label, str(cell.seed), cell.digest, CellFolder.of(cell).status()) for cell in cells]
    return ("cell", "seed", "hash", "status"), rows  # type: ignore[return-value]


def status_rows(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """A row per cell, under `STATUS_HEADER`."""
    return [_status_row(cell, CellFolder.of(cell)) for cell in cells]


def _status_row(cell: Cell, folder: CellFolder) -> tuple[str, ...]:
    status, state = folder.status(), folder.state()
    progress, time, note = "", "", state.reason or ""
    if status == "running":
        holder, made = folder.holder(), folder.progress()
        if made is not None:
            progress = f"{made.step} of {made.steps}"
            time = "" if made.seconds_left is None else f"{time_text(made.seconds_left)} left"
        note = f"{holder.host}, pid {holder.pid}, since {holder.since}" if holder else ""
    elif status == "done":
        time, note = time_text(state.seconds), str(folder.run)
    return cell.label, str(cell.seed), cell.digest, status, progress, time, note


def status_counts(rows: Sequence[Sequence[str]]) -> str:
    """`12 cells: 3 done, 2 running, 7 queued`"""
    counts = ", ".join(f"{count} {status}" for status, count in Counter(row[3] for row in rows).items())
    return f"{len(rows)} cell{'s' * (len(rows) != 1)}: {counts}"


def cancel_grid(grid: Grid) -> int:
    """Asks all schedulers and cells, on all machines, to save and end. Returns how many cells run."""
    path = _cancel_file(grid)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    running = [folder for cell in cells_of(grid) if (folder := CellFolder.of(cell)).holder() is not None]
    for folder in running:
        folder.request_stop("stopped")
    return len(running)


def _cancel_file(grid: Grid) -> Path:
    return grid.folder / "CANCEL"
