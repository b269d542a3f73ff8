"""The grid commands: run, status, report, cancel."""

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

POLL_S = 2.0  # of `grid status` on a terminal

GridArgument = Annotated[str, typer.Argument(metavar="GRID", help="A grid file, or the name of a shipped grid.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides of the recipe in every cell. They make other cells, so repeat them with each command.",
    ),
]


def run(
    grid: GridArgument,
    overrides: Overrides = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of cells at once. Default: as many as fit."),
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="local, slurm, ray or a plugin. Default: that of the grid file.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list all cells without starting any.")] = False,
    retry: Annotated[
        str | None, typer.Option(metavar="STATUS", help="Start cells with this status again: failed or pruned.")
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop all cells when one fails.")] = False,
    only: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Only the row with this label, or rows whose labels contain it.")
    ] = None,
) -> None:
    """Train every cell that is not done, then show the table."""
    made = _load(grid, overrides)
    from framework.grid.commands import RETRIED, dry_rows, run_grid

    if retry not in (None, *RETRIED):
        raise UserError("unknown-name", f"found {retry!r}", place="--retry", expected=" or ".join(RETRIED))
    if dry_run:
        print_table(*dry_rows(made, only, executor))
    for notice in made.notices:
        print(f"notice: {notice}")
    if dry_run:
        return
    is_complete = run_grid(made, executor=executor, jobs=jobs, retry=retry, fail_fast=fail_fast, only=only)
    if only is None:
        _report(made)
    if not is_complete:
        raise typer.Exit(1)


def status(grid: GridArgument, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show the status of each cell; on a terminal, update it until all are settled or Ctrl-C."""
    made = _load(grid, overrides)
    from framework.grid.commands import STATUS_HEADER, cells_of, status_counts, status_rows

    rows = status_rows(cells_of(made))
    if as_json:
        print_json([dict(zip(("label", "seed", "hash", "status", "progress", "time", "note"), row)) for row in rows])
        return
    if sys.stdout.isatty() and any(row[3] in ("running", "queued") for row in rows):
        _watch(made)
        return
    print_table(STATUS_HEADER, rows)
    print(status_counts(rows))


def report(
    grid: GridArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the table there, to share it without the runs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the table of the cells that are done, and write it as CSV, Markdown, LaTeX and HTML."""
    made = _load(grid, overrides)
    if as_json:
        from framework.grid.report import grid_result

        print_json(asdict(grid_result(made)))
        return
    _report(made, out)


def cancel(grid: GridArgument, overrides: Overrides = None) -> None:
    """Let every running cell save and end, on any machine. `grid run` resumes them."""
    made = _load(grid, overrides)
    from framework.grid.commands import cancel_grid

    count = cancel_grid(made)
    print(f"asked {count} running cell{'s' * (count != 1)} to save and end")


def _load(named: str, overrides: Sequence[str] | None) -> Grid:
    from framework.grid.file import find_grid, read_grid
    from framework.grid.make import make_grid

    return make_grid(read_grid(find_grid(named)), overrides or ())


def _report(made: Grid, out: Path | None = None) -> None:
    from framework.grid.hparams import write_hparams
    from framework.grid.report import grid_result, write_report
    from framework.grid.table import header_and_rows
    from framework.grid.weak_models import weak_models
    from framework.grid.wording import notes_below

    result = grid_result(made)
    for warning in weak_models(result):  # before the table, which has p values
        print(f"warning: {warning}")
    print_table(*header_and_rows(result), result.name)
    for note in notes_below(result):
        print(note)
    print()
    for path in write_report(result, out or made.folder, linked=out is None):
        print(path)
    if out is None:
        write_hparams(result, made.folder / "tensorboard")
        print(f"tensorboard --logdir {made.folder / 'tensorboard'}")


def _watch(made: Grid) -> None:
    from rich import box
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from framework.grid.commands import STATUS_HEADER, source_of, status_counts, status_rows

    source = source_of(made)

    def draw(rows: Sequence[Sequence[str]]) -> Any:
        table = Table(*STATUS_HEADER, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*map(Text, row))
        return Group(Text(status_counts(rows)), table)  # Live cuts off the end of a long table

    rows = status_rows(source.cells())
    with contextlib.suppress(KeyboardInterrupt), Live(draw(rows), auto_refresh=False) as live:
        while len(rows) < source.total or any(row[3] in ("running", "queued") for row in rows):
            time.sleep(POLL_S)
            rows = status_rows(source.cells())
            live.update(draw(rows), refresh=True)
