"""Ends a grid: its table, in every form that a paper or a reader may want."""

from __future__ import annotations

from pathlib import Path

from framework.grid.cell_folder import CellFolder
from framework.grid.cells import rows_of
from framework.grid.make import Grid
from framework.grid.page import PageData, draw_page
from framework.grid.results import GridResult
from framework.grid.rows import grid_rows
from framework.grid.run import cells_of
from framework.grid.scores import higher_is_better
from framework.grid.table import as_csv, as_latex, as_markdown, cells_csv
from framework.runtime.files import atomic_write


def grid_result(grid: Grid) -> GridResult:
    """What the cells of a grid have come to so far.

    Raises:
        ValueError: the report asks for a score that no cell has.
    """
    recipe, asked, cells = grid.base, grid.read.said.report, cells_of(grid)
    evaluate = recipe.evaluate
    metrics = asked.metrics or tuple(f"test/{name}" for name in evaluate.weights or [evaluate.monitored])
    if grid.read.said.search is not None and not asked.metrics:  # what is best is not chosen on test
        metrics = (grid.read.said.search.monitor or f"val/{evaluate.monitored}", *metrics)
    baseline = None if asked.compare == "none" else grid.baseline
    groups = [
        (label, row[0].settings, [CellFolder.of(cell).result(cell) for cell in row])
        for label, row in rows_of(cells).items()
    ]
    rows, exams, notices = grid_rows(groups, metrics, baseline=baseline, compare=asked.compare)
    recipes = [recipe, *(cell.recipe for cell in cells)]
    return GridResult(
        name=grid.name,
        metrics=metrics,
        higher_is_better={metric: higher_is_better(metric, recipes) for metric in metrics},
        axes={
            axis: labels or tuple(dict.fromkeys(c.settings[axis] for c in cells)) for axis, labels in grid.axes.items()
        },
        baseline=baseline,
        rows=rows,
        exams=exams,
        notices=(*grid.notices, *notices),
    )


def write_report(result: GridResult, folder: Path, *, linked: bool = True) -> list[Path]:
    """Writes all forms of a table into a folder.

    Args:
        linked: whether its page leads to the reports of the cells, which a folder that is handed on does not have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, page = PageData.collect(result), folder / "index.html"
    texts = {
        "table.csv": as_csv(result),
        "cells.csv": cells_csv(result),
        "table.md": as_markdown(result),
        "table.tex": as_latex(result),
        "result.json": data.as_json(),
        page.name: draw_page(data, page if linked else None),
    }
    for name, text in texts.items():
        atomic_write(folder / name, text)
    return [folder / name for name in texts]
