"""How the cells of a grid stand, as a table that people watch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from framework.grid.cell_folder import CellFolder
from framework.grid.cells import Cell
from framework.grid.wording import time_text

HEADER = ("cell", "seed", "hash", "status", "progress", "time", "where, or what went wrong")


def status_rows(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    return [_row(cell) for cell in cells]


def counts(rows: Sequence[Sequence[str]]) -> str:
    """`12 cells: 3 done, 2 running, 7 queued`."""
    found = Counter(row[3] for row in rows)
    told = ", ".join(f"{number} {status}" for status, number in found.items())
    return f"{len(rows)} cell{'s' * (len(rows) != 1)}: {told}"


def _row(cell: Cell) -> tuple[str, ...]:
    folder = CellFolder.of(cell)
    status, state = folder.status(), folder.state()
    progress, time, note = "", "", ""
    if status == "running":
        holder, made = folder.holder(), folder.progress()
        if made is not None:
            progress = f"{made.step} of {made.steps}"
            time = "" if made.seconds_left is None else f"{time_text(made.seconds_left)} left"
        note = f"{holder.host}, pid {holder.pid}, since {holder.since}" if holder else ""
    elif status == "done":
        time, note = time_text(state.seconds), str(folder.run)
    elif state.reason:
        note = state.reason
    return cell.label, str(cell.seed), cell.digest, status, progress, time, note
