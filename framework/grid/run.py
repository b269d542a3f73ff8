"""What `grid run` and `grid cancel` do, between a grid and its scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.grid.cell_folder import CellFolder, Status
from framework.grid.cells import Cell, rows_of
from framework.grid.executor import Executor
from framework.grid.make import Grid
from framework.grid.scheduler import Fixed, Scheduler, Source, forget
from framework.progress import say
from framework.recipe import RecipeError
from framework.recipe.check import explain
from framework.registry import did_you_mean, find, load
from framework.signature import given, model_of

KIND = "executor"
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
        only: text that the labels of the rows hold.

    Returns:
        Whether all of them are done.
    """
    source = source_of(grid, only)
    if retry is not None:
        if retry not in RETRIED:
            raise ValueError(f"--retry: found {retry!r}, expected {' or '.join(RETRIED)}")
        again = forget(source.cells(), [retry])  # type: ignore[list-item]
        say(f"{len(again)} {retry} cell{'s' * (len(again) != 1)} to be started again")
    scheduler = Scheduler(
        name=grid.name,
        source=source,
        executor=build_executor(grid, executor, jobs),
        attempts=grid.read.said.attempts,
        fail_fast=fail_fast,
        cancel=_cancel_file(grid),
    )
    good = scheduler.run()
    failed = [digest for digest, status in scheduler.statuses.items() if status == "failed"]
    if failed and retry is None:
        say(f"{len(failed)} failed; --retry failed starts them again")
    return good


def build_executor(grid: Grid, named: str | None, jobs: int | None) -> Executor:
    """The executor that the grid file or the command line names, with the grid file's keys if they are its own.

    Raises:
        RecipeError: there is none of this name, or it does not take these keys.
    """
    read = grid.read
    said = dict(read.said.executor)
    name = said.pop("name", None)
    at = f"{read.where((KIND,))}: {KIND}"
    if not isinstance(name, str):
        raise RecipeError(f"{at}: needs name, such as {{name: local}}")
    if named is not None and named != name:
        name, said, at = named, {}, f"--{KIND}"
    plugin = find(KIND, name, read.plugin_files)
    keys = _checked_keys(plugin, said, at)
    known = {"jobs": jobs, "folder": grid.folder / name}
    handed = {word: known[word] for word in given(plugin)}
    if jobs is not None and "jobs" not in handed:
        raise RecipeError(f"--jobs: executor {name} does not take it")
    built: Executor = load(plugin)(**keys, **handed)
    return built


def _checked_keys(plugin: Any, said: dict[str, Any], at: str) -> dict[str, Any]:
    from pydantic import ValidationError

    try:
        return model_of(plugin).model_validate(said, strict=True).model_dump(by_alias=True)
    except ValidationError as error:
        names = [field.alias or name for name, field in model_of(plugin).model_fields.items()]
        found = explain(error, said, (), lambda place: names if place == () else [])
        raise RecipeError(*[f"{at}.{'.'.join(map(str, key))}: {problem}" for key, problem in found]) from None


def source_of(grid: Grid, only: str | None = None) -> Source:
    """The cells to be trained."""
    search = grid.read.said.search
    if search is not None and search.method == "tpe":
        if only is not None:
            raise ValueError("--only: a search by TPE has no rows to choose from; leave it out")
        from framework.grid.searching import SearchedCells

        return SearchedCells(grid)
    cells = [cell for cell in grid.cells if only is None or only in cell.title]
    if not cells:
        labels = list(rows_of(grid.cells))
        raise ValueError(f"--only: no cell holds {only!r}.{did_you_mean(only or '', labels)} Rows: {'; '.join(labels)}")
    return Fixed(cells)


def cells_of(grid: Grid) -> Sequence[Cell]:
    """All cells that are known by now."""
    return source_of(grid).cells()


def dry_rows(grid: Grid, only: str | None = None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of what `grid run` would find."""
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
    running = 0
    for cell in cells_of(grid):
        folder = CellFolder.of(cell)
        if folder.path.is_dir() and folder.status_at_rest() in ("queued", "stopped"):
            folder.cancel.write_text("stopped", encoding="utf-8")
            running += folder.holder() is not None
    return running


def _cancel_file(grid: Grid) -> Path:
    return grid.folder / "CANCEL"
