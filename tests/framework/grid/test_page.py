"""The page of a grid: what it shows, that it is well-formed and offline, and that labels are only ever text."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hand_made import BLEU, LOSS, cell, result, row, two_axes, write_curve
from html_page import Page, check_offline

from framework.grid.effects import (
    crossed_pairs,
    interactions,
    main_effects,
    mean_curve,
    pareto_front,
    read_curves,
    varied,
)
from framework.grid.page import PageData, draw_page
from framework.grid.plots import interaction_figure, is_ordered
from framework.grid.results import Comparison, GridResult, Row

EVIL = "<script>alert('x')</script> & _a_ 100% $x$ \\ \"q\" 乳腺 é"
DAY = date(2031, 2, 3)


def page_of(grid: GridResult, home: Path) -> Page:
    return Page(draw_page(PageData.collect(grid, DAY), home / "index.html"))


def links(page: Page) -> list[str | None]:
    return [at["href"] for at in page.all("a") if not (at["href"] or "").startswith("#")]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of two axes, with curves and a notice."""
    home = tmp_path_factory.mktemp("usual")
    return page_of(replace(with_curves(two_axes(home)), notices=("two cells are missing",)), home)


def hollow(page: Page) -> list[dict[str, str | None]]:
    return page.all("g", "hollow")


def with_curves(grid: GridResult) -> GridResult:
    for one in (c for r in grid.rows for c in r.cells if c.status in ("done", "failed")):
        last = 6 if one.status == "done" else 3
        write_curve(one.run, "val/bleu_4", [(step * 10, step / 20 + one.seed / 100) for step in range(1, last)])
    return grid


def evil_grid(home: Path) -> GridResult:
    rows = [
        row(
            f"a={label}, b={other}",
            {EVIL: label, "b": other},
            [
                cell(home / f"{i}-1", 1, {EVIL: label, "b": other}, 0.1 + i / 50),
                cell(home / f"{i}-2", 2, {EVIL: label, "b": other}, status="failed", error=EVIL),
            ],
        )
        for i, (label, other) in enumerate([("x", "0"), (EVIL, "0"), ("x", EVIL), (EVIL, EVIL)])
    ]
    labels = {EVIL: ["x", EVIL], "b": ["0", EVIL]}
    return with_curves(result(rows, labels, name=EVIL, notices=(EVIL,)))


def no_number(home: Path) -> GridResult:
    nan = float("nan")
    first = row("first", {"a": "x"}, [cell(home / "first", 1, {"a": "x"}, 0.3)])
    bare = {BLEU: Comparison(nan, nan, nan, nan, nan), LOSS: None}
    return result([first, row("nan", {"a": "y"}, [cell(home / "nan", 1, {"a": "y"}, nan)], bare)], {"a": ["x", "y"]})


def grids(home: Path) -> dict[str, GridResult]:
    one = [row("as it is", {}, [cell(home / "one", 1, {}, 0.3)])]
    lost = [row("lost", {"a": "x"}, [cell(home / "lost", 1, {"a": "x"}, status="queued")])]
    return {
        "two axes": with_curves(two_axes(home)),
        "evil": evil_grid(home / "evil"),
        "no axis, one seed": result(one, {}, baseline=None, exams=None),
        "nothing done": result(lost, {"a": ["x", "y"]}),
        "no rows": result([], {"a": ["x", "y"]}),
        "no cells": result([row("none", {"a": "x"}, [])], {"a": ["x"]}),
        "no number": no_number(home),
    }


NAMES = ("two axes", "evil", "no axis, one seed", "nothing done", "no rows", "no cells", "no number")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_well_formed_offline_and_runs_no_script_but_its_own(name: str, tmp_path: Path) -> None:
    check_offline(page_of(grids(tmp_path)[name], tmp_path))


def test_numbers_of_a_plot_are_finite_even_if_a_score_is_not(tmp_path: Path) -> None:
    page = page_of(grids(tmp_path)["no number"], tmp_path)
    drawn = [value for tag, at in page.elements if tag in ("path", "text", "svg", "i") for value in at.values()]
    assert drawn and [value for value in drawn if re.search(r"\bnan|\binf", value or "")] == []
    assert "no mark: nan: a score is not finite" in page.text
    assert not any((at.get("data-value") or "") == "nan" for _, at in page.elements if at.get("data-value") != "y")


def test_labels_and_errors_are_text(tmp_path: Path) -> None:
    page = page_of(evil_grid(tmp_path), tmp_path)
    assert page.text.count(EVIL) > 20
    assert [at.get("data-value") for at in page.all("td", "text")].count(EVIL) == 4
    assert all(EVIL not in key for _, at in page.elements for key in at)


def test_a_page_starts_with_title_date_notices_and_statuses(usual: Page) -> None:
    top = usual.text[: usual.text.index("Results")]
    for text in ("breast_ablation", "2031-02-03", "12 cells: 10 done, 1 failed, 1 queued", "two cells are missing"):
        assert text in top


def test_a_page_without_a_date_has_todays(tmp_path: Path) -> None:
    before = date.today()
    assert before <= PageData.collect(two_axes(tmp_path)).made <= date.today()


def test_every_column_sorts_by_a_button_and_numbers_by_their_value(usual: Page) -> None:
    heads = [at for at in usual.all("th") if "aria-sort" in at]
    assert {at["aria-sort"] for at in heads} == {"none"} and len(usual.all("button")) == len(heads)
    values = [at.get("data-value") for at in usual.all("td")]
    assert str(two_axes(Path()).rows[2].values[BLEU].mean) in values  # type: ignore[union-attr]


def test_each_row_of_a_sortable_table_has_a_cell_for_each_header(tmp_path: Path) -> None:
    text = draw_page(PageData.collect(two_axes(tmp_path), DAY))
    tables = re.findall(r"<table.*?</table>", text, re.DOTALL)
    assert len(tables) == 2
    for table in tables:
        columns = table.count("aria-sort")
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table[table.index("<tbody>") :], re.DOTALL)
        assert {len(re.findall(r"<t[dh][ >]", line)) for line in rows} == {columns}


def test_a_cell_links_to_its_report_only_where_there_is_one(tmp_path: Path) -> None:
    grid = replace(two_axes(tmp_path / "run #1"), metrics=(BLEU,), axes={})
    report = grid.rows[1].cells[2].run / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("report", encoding="utf-8")
    (tmp_path / "pages").mkdir()
    page = page_of(grid, tmp_path / "pages")
    assert links(page) == ["../run%20%231/none0.3-3/report.html"]
    assert links(Page(draw_page(PageData.collect(grid, DAY)))) == []  # handed on without the runs


def test_missing_cells_are_footnotes_and_hollow_marks(usual: Page) -> None:
    assert "distiller=lda, weight=0.3: seed 2 failed: CUDA out of memory; seed 3 queued" in usual.text
    assert "○ distiller=lda, weight=0.3: seed 2 failed; seed 3 queued" in usual.text
    # Of each metric: lda and 0.3 of the main effects, one point of the interaction, one point of each cost.
    # And the end of the curve of the failed cell.
    assert len(hollow(usual)) == 2 * 5 + 1


def test_nothing_is_hollow_if_nothing_is_missing(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    whole = replace(grid, rows=grid.rows[:2], axes={"losses.global_semantic.weight": ("0", "0.3")})
    page = page_of(whole, tmp_path)
    assert not hollow(page) and "○ distiller" not in page.text and not page.all("ol", "notes")


def test_an_effect_is_the_mean_of_rows_and_lists_what_it_lacks(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    none, lda = main_effects(grid, "distiller", BLEU)
    assert none.mean == pytest.approx((0.28 + 0.29) / 2) and none.lacks == ()
    assert lda.mean == pytest.approx((0.31 + 0.326) / 2)  # not (3 * 0.31 + 0.326) / 4: each row weighs the same
    assert lda.lacks == ("distiller=lda, weight=0.3: seed 2 failed; seed 3 queued",)
    assert len(none.cells) == 6 and len(lda.cells) == 4


def test_an_effect_lists_the_settings_it_was_never_run_with(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    part = replace(grid, rows=grid.rows[:3])
    none, lda = main_effects(part, "distiller", BLEU)
    assert none.lacks == ()
    assert lda.lacks == ("distiller=lda: not in the grid with losses.global_semantic.weight=0.3",)
    lines = interactions(part, "distiller", "losses.global_semantic.weight", BLEU)
    absent = lines["0.3"][1]
    assert absent.mean is None
    assert absent.lacks == ("distiller=lda, losses.global_semantic.weight=0.3: not in the grid",)


def test_axes_that_change_together_have_no_interaction(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    assert crossed_pairs(grid) == [("distiller", "losses.global_semantic.weight")]
    paired = replace(grid, rows=(grid.rows[0], grid.rows[3]))
    assert crossed_pairs(paired) == [] and varied(paired) == ["distiller", "losses.global_semantic.weight"]


def test_only_labels_with_an_order_are_joined_by_lines(tmp_path: Path) -> None:
    grid, weight = two_axes(tmp_path), "losses.global_semantic.weight"
    named = str(interaction_figure(grid, "distiller", weight, BLEU).picture)
    numbers = str(interaction_figure(grid, weight, "distiller", BLEU).picture)
    assert 'class="line"' not in named and numbers.count('class="line"') == 2
    assert not any(key.joined for key in interaction_figure(grid, "distiller", weight, BLEU).keys)
    assert is_ordered(["0", "1e-3", "0.1"]) and is_ordered(["64", "32"]) and is_ordered(["1"])
    assert not is_ordered(["1", "3", "2"]) and not is_ordered(["none", "1"]) and not is_ordered(["true", "false"])


def test_a_grid_below_its_baselines_says_so_before_any_p_value(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    weak = [
        replace(r, cells=tuple(replace(c, baselines={BLEU: {"fixed_report": 0.9}}) for c in r.cells)) for r in grid.rows
    ]
    text = page_of(replace(grid, rows=tuple(weak)), tmp_path).text
    assert text.index("No model is above the strongest baseline") < text.index("p=0.012")
    assert "No model is above" not in page_of(grid, tmp_path).text


def test_an_axis_with_one_label_has_no_figure(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    settings = [replace(r, settings={**r.settings, "seeded": "always"}) for r in grid.rows]
    grid = replace(grid, rows=tuple(settings), axes={**grid.axes, "seeded": ("always",)})
    assert "seeded" not in varied(grid)


def test_the_pareto_front_has_the_rows_that_no_row_dominates() -> None:
    points = [(1.0, 0.2), (2.0, 0.5), (3.0, 0.4), (2.0, 0.3), (4.0, 0.9), (1.0, 0.2)]
    assert pareto_front(points, higher_is_better=True) == [0, 5, 1, 4]
    assert pareto_front([(1.0, 0.2), (2.0, 0.1), (2.0, 0.3)], higher_is_better=False) == [0, 1]


def test_the_front_is_named_under_the_figure(tmp_path: Path) -> None:
    dear = [cell(tmp_path / "c", 1, {"a": "c"}, 0.2, seconds=900.0)]
    cheap = [cell(tmp_path / "d", 1, {"a": "d"}, 0.3, seconds=100.0)]
    grid = result([row("dear", {"a": "c"}, dear), row("cheap", {"a": "d"}, cheap)], {"a": ["c", "d"]})
    text = page_of(grid, tmp_path).text
    assert text.count("Pareto front (ringed): cheap") == 4 and "Pareto front (ringed): dear" not in text
    assert "cheap, dear" not in text and "dear, cheap" not in text


def test_curves_are_of_the_first_metric_on_validation(tmp_path: Path) -> None:
    grid = with_curves(two_axes(tmp_path))
    curves = read_curves(grid)
    assert curves.name == "val/bleu_4" and len(curves.lines) == 11
    assert curves.lines[0].points == tuple((step * 10.0, step / 20 + 0.01) for step in range(1, 6))
    assert curves.notes == ("Without val/bleu_4: distiller=lda, weight=0.3, seed 3 (queued)",)
    assert len(page_of(grid, tmp_path).all("g", "thin")) == 11


def test_curves_are_of_the_loss_if_no_metric_was_recorded(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    write_curve(grid.rows[0].cells[0].run, "train/loss", [(step, 1 / step) for step in range(1, 1001)])
    curves = read_curves(grid)
    (curve,) = curves.lines
    assert curves.name == "train/loss" and len(curve.points) == 200
    assert curve.points[0] == (5.0, pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5))
    assert curves.notes[-1] == "Each point is the mean of 5 consecutive values."


def test_a_damaged_record_leaves_its_curve_out_and_is_noted(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    for one in grid.rows[0].cells[:2]:
        write_curve(one.run, "val/bleu_4", [(1, 0.1)])
    with (grid.rows[0].cells[0].run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "name": "val/bleu_4"}\n')
    curves = read_curves(grid)
    assert [(curve.row, curve.cell) for curve in curves.lines] == [(0, 1)]
    assert curves.notes[0].startswith("distiller=none, weight=0, seed 1: its curve is left out: metrics.jsonl:2: ")
    assert curves.notes[0].endswith("[damaged-file]")


def test_the_mean_of_a_row_ends_where_its_shortest_seed_ends(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    first, second, _ = grid.rows[0].cells
    write_curve(first.run, "val/bleu_4", [(1, 0.1), (2, 0.2), (3, 0.3)])
    write_curve(second.run, "val/bleu_4", [(1, 0.3), (2, 0.4)])
    assert mean_curve(read_curves(grid).lines) == [(1.0, pytest.approx(0.2)), (2.0, pytest.approx(0.3))]


def test_each_metric_has_its_figures_and_can_be_chosen(usual: Page, tmp_path: Path) -> None:
    assert [at["data-metric"] for at in usual.all("section")] == ["0", "1"]
    assert [at["value"] for at in usual.all("option")] == ["0", "1"]
    described = [at["aria-label"] or "" for at in usual.all("svg") if at.get("role") == "img"]
    assert f"Mean {LOSS} by distiller: none 7.150, lda 6.820 (incomplete)" in described
    only = page_of(replace(two_axes(tmp_path), metrics=(BLEU,), axes={}), tmp_path)
    assert not only.all("select")


def test_many_rows_differ_by_more_than_colour(tmp_path: Path) -> None:
    rows: list[Row] = []
    for i in range(20):
        settings = {"topics": str(i)}
        rows.append(row(f"topics={i}", settings, [cell(tmp_path / str(i), 1, settings, 0.2 + i / 100)]))
    page = page_of(result(rows, {"topics": [str(i) for i in range(20)]}), tmp_path)
    assert {at.get("data-show") for at in page.all("li") if at.get("data-show")} == {str(i) for i in range(20)}
    nine = draw_page(PageData.collect(result(rows[:9], {"topics": [str(i) for i in range(9)]}), DAY))
    marks = dict(re.findall(r'data-show="([08])">(<svg.*?</svg>)', nine))
    colours = {series: set(re.findall(r"--c\d", svg)) for series, svg in marks.items()}
    assert colours["0"] == colours["8"] == {"--c0"}
    shapes = {series: re.findall(r' d="([^"]*)"', svg) for series, svg in marks.items()}
    assert shapes["0"][1] != shapes["8"][1]
    assert "stroke-dasharray" in marks["8"] and "stroke-dasharray" not in marks["0"]


def test_the_same_result_gives_the_same_page(tmp_path: Path) -> None:
    with_curves(two_axes(tmp_path / "runs"))
    first, second = (draw_page(PageData.collect(two_axes(tmp_path / "runs"), DAY)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", NAMES)
def test_the_data_of_a_page_survives_json(name: str, tmp_path: Path) -> None:
    data = PageData.collect(grids(tmp_path)[name], DAY)
    assert repr(PageData.from_json(data.as_json())) == repr(data)  # NaN is not equal to itself
