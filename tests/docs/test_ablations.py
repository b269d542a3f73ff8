"""docs/results holds the results of the shipped grids, and the pages show their numbers."""

from __future__ import annotations

import csv
import runpy

import pytest
from harness import ROOT
from html_page import Page, check_offline

from framework.grid.cells import cells_by_row
from framework.grid.file import find_grid, read_grid, shipped_grids
from framework.grid.make import make_grid
from framework.grid.page import PageData, draw_page

RESULTS = ROOT / "docs" / "results"
PAGE = (RESULTS / "ablations.md").read_text(encoding="utf-8")
GRIDS = sorted(set(shipped_grids()) - {"smoke", "exams", "busbra_devices"})  # of a tiny model; without results yet


def read(name: str, file: str) -> list[dict[str, str]]:
    with (RESULTS / name / file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("name", GRIDS)
def test_committed_results_have_the_cells_of_their_grid(name):
    rows = cells_by_row(make_grid(read_grid(find_grid(name))).cells)
    table, cells = read(name, "table.csv"), read(name, "cells.csv")
    assert [row["row"] for row in table] == list(rows)
    assert len(cells) == sum(map(len, rows.values())) and {cell["status"] for cell in cells} == {"done"}


@pytest.mark.parametrize("name", GRIDS)
def test_the_page_has_a_section_for_each_grid(name):
    section = PAGE[PAGE.index(f"`recipes/grids/{name}.yaml`") :]
    assert section.index(f"<!-- grid: {name} -->") < section.index("<!-- end -->")


def test_the_tables_are_fresh():
    assert runpy.run_path(str(RESULTS.parent / "make_tables.py"))["main"](["--check"]) == 0


@pytest.mark.parametrize("name", GRIDS)
def test_every_cell_of_a_grid_has_a_curve(name):
    data = PageData.from_json((RESULTS / name / "result.json").read_text(encoding="utf-8"))
    cells = {(row, cell) for row, line in enumerate(data.result.rows) for cell in range(len(line.cells))}
    assert {(curve.row, curve.cell) for curve in data.curves.lines} == cells


def test_a_page_of_a_committed_result_links_to_no_run():
    page = Page(draw_page(PageData.from_json((RESULTS / "topics" / "result.json").read_text(encoding="utf-8"))))
    check_offline(page)
    assert page.all("a") == [] and "compared over 300 exams" in page.text
