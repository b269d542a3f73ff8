"""The result of a grid, and its table as CSV, Markdown, LaTeX and HTML."""

from __future__ import annotations

from pathlib import Path

from framework.grid.cell_folder import CellFolder
from framework.grid.cells import cells_by_row
from framework.grid.commands import cells_of
from framework.grid.make import Grid
from framework.grid.page import PageData, draw_page
from framework.grid.results import GridResult
from framework.grid.rows import grid_rows
from framework.grid.scores import higher_is_better
from framework.grid.table import as_csv, as_latex, as_markdown, cells_csv
from framework.runtime.files import atomic_write


def grid_result(grid: Grid) -> GridResult:
    """The results of a grid so far.

    Raises:
        UserError: the report names a score that no cell has.
    """
    recipe, spec, cells = grid.base, grid.file.spec, cells_of(grid)
    evaluate = recipe.evaluate
    metrics = spec.report.metrics or tuple(f"test/{name}" for name in evaluate.weights or [evaluate.monitored])
    if spec.search is not None and not spec.report.metrics:  # the best trial is chosen on val, not on test
        metrics = (spec.search.monitor or f"val/{evaluate.monitored}", *metrics)
    baseline = None if spec.report.compare == "none" else grid.baseline
    groups = [
        (label, row[0].settings, [CellFolder.of(cell).result(cell) for cell in row])
        for label, row in cells_by_row(cells).items()
    ]
    rows, exams, notices = grid_rows(groups, metrics, baseline=baseline, compare=spec.report.compare)
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
    """Writes the table in all formats.

    Args:
        linked: whether the page links to the reports of the cells; False for a folder that is shared without the runs.
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
