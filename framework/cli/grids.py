"""The verbs of grids: run, status, report, cancel."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framework.cli.options import Json
from framework.runtime.console import print_json, print_table
from framework.runtime.errors import UserError

if TYPE_CHECKING:
    from framework.grid.make import Grid

POLL_S = 2.0  # between two updates of `grid status`

GridArgument = Annotated[str, typer.Argument(metavar="GRID", help="A grid file, or the name of a shipped grid.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides of the grid's recipe; the same for run, status, report and cancel."
    ),
]


def run(
    grid: GridArgument,
    overrides: Overrides = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells at once; default: the executor's.")] = None,
    executor: Annotated[str | None, typer.Option(help="local, slurm, ray or a plugin; default: the grid's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list all cells without starting them.")] = False,
    retry: Annotated[str | None, typer.Option(metavar="failed", help="Restart cells that failed (or: pruned).")] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop all cells when one fails.")] = False,
    only: Annotated[
        str | None, typer.Option(metavar="LABEL", help="The row with this label, or all rows whose labels contain it.")
    ] = None,
) -> None:
    """Train all unfinished cells, then show the table."""
    made = _load(grid, overrides)
    from framework.grid.run import RETRIED, dry_rows, run_grid

    if retry not in (None, *RETRIED):
        raise UserError("unknown-name", f"found {retry!r}", place="--retry", expected=" or ".join(RETRIED))
    if dry_run:
        print_table(*dry_rows(made, only, executor))
        _notices(made.notices)
        return
    _notices(made.notices)
    succeeded = run_grid(made, executor=executor, jobs=jobs, retry=retry, fail_fast=fail_fast, only=only)
    if only is None:
        _report(made)
    if not succeeded:
        raise typer.Exit(1)


def status(grid: GridArgument, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show the status of the cells; on a terminal, until all have ended or Ctrl-C."""
    made = _load(grid, overrides)
    from framework.grid.run import cells_of
    from framework.grid.status import HEADER, counts, status_rows

    rows = status_rows(cells_of(made))
    if as_json:
        print_json([dict(zip(("label", "seed", "hash", "status", "progress", "time", "note"), row)) for row in rows])
        return
    if sys.stdout.isatty() and any(row[3] in ("running", "queued") for row in rows):
        _watch(made)
        return
    print_table(HEADER, rows)
    print(counts(rows))


def report(
    grid: GridArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write a copy that does not link to the runs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the table of the finished cells, and write it as CSV, Markdown, LaTeX and HTML."""
    made = _load(grid, overrides)
    if as_json:
        from framework.grid.report import grid_result

        print_json(asdict(grid_result(made)))
        return
    _report(made, out)


def cancel(grid: GridArgument, overrides: Overrides = None) -> None:
    """Ask every running cell to save and end. `grid run` resumes them."""
    made = _load(grid, overrides)
    from framework.grid.run import cancel_grid

    asked = cancel_grid(made)
    print(f"asked {asked} running cell{'s' * (asked != 1)} to save and end")


def _load(named: str, overrides: Sequence[str] | None) -> Grid:
    from framework.grid.file import find_grid, read_grid
    from framework.grid.make import make_grid

    return make_grid(read_grid(find_grid(named)), overrides or ())


def _notices(notices: Sequence[str]) -> None:
    for notice in notices:
        print(f"notice: {notice}")


def _report(made: Grid, out: Path | None = None) -> None:
    from framework.grid.report import grid_result, write_report
    from framework.grid.table import header_and_rows
    from framework.grid.wording import notes_below

    result = grid_result(made)
    header, rows = header_and_rows(result)
    print_table(header, rows, result.name)
    for note in notes_below(result):
        print(note)
    print()
    for path in write_report(result, out or made.folder, linked=out is None):
        print(path)


def _watch(made: Grid) -> None:
    from rich import box
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from framework.grid.run import source_of
    from framework.grid.status import HEADER, counts, status_rows

    source = source_of(made)

    def drawn(rows: Sequence[Sequence[str]]) -> Any:
        table = Table(*HEADER, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        return Group(Text(counts(rows)), table)  # a long table is cut at its end

    def open_(rows: Sequence[Sequence[str]]) -> bool:
        return len(rows) < source.total or any(row[3] in ("running", "queued") for row in rows)

    rows = status_rows(source.cells())
    # Ctrl-C ends watching.
    with contextlib.suppress(KeyboardInterrupt), Live(drawn(rows), auto_refresh=False) as live:
        while open_(rows):
            time.sleep(POLL_S)
            rows = status_rows(source.cells())
            live.update(drawn(rows), refresh=True)
