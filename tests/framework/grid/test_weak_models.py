"""Warnings before the table of a grid: models below baselines, at the floor of a score, or collapsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import BLEU, LOSS, cell, result, row
from html_page import Page

from framework.grid.page import PageData, draw_page
from framework.grid.results import Comparison, GridResult
from framework.grid.table import as_latex, as_markdown
from framework.grid.weak_models import weak_models

SURE = Comparison(0.1, 0.05, 0.15, 0.0, 0.0)


def grid(home: Path, bleu: Mapping[str, float], fixed: float, *, collapsed: bool = False) -> GridResult:
    """Rows by label; every cell has two baselines, of which the better one has BLEU-4 `fixed`."""
    rows = []
    for label, value in bleu.items():
        cells = [
            replace(
                cell(home / f"{label}{seed}", seed, {"a": label}, value),
                baselines={
                    BLEU: {"random_report": fixed - 0.1, "fixed_report": fixed},
                    LOSS: {"random_report": 11 - 10 * fixed, "fixed_report": 10 - 10 * fixed},
                },
                collapsed=collapsed,
            )
            for seed in (1, 2)
        ]
        versus = None if label == "one" else {BLEU: SURE, LOSS: None}
        rows.append(row(label, {"a": label}, cells, versus))
    return result(rows, {"a": list(bleu)})


def test_models_below_every_baseline_are_named_before_any_p_value(tmp_path: Path) -> None:
    below = grid(tmp_path, {"one": 0.2, "two": 0.3}, 0.4)
    (warning,) = weak_models(below)
    assert BLEU in warning and LOSS in warning and "two" in warning and "best single report 0.400" in warning
    for text in (as_markdown(below), Page(draw_page(PageData.collect(below))).text):
        assert -1 < text.index("No model is above the strongest baseline") < text.index("0.001")
    assert "No model is above" in as_latex(below)


def test_a_row_below_the_baselines_is_named_if_another_is_above(tmp_path: Path) -> None:
    (warning,) = weak_models(grid(tmp_path, {"one": 0.3, "two": 0.5}, 0.4))
    assert warning.startswith("one is not above") and BLEU in warning and LOSS in warning and "two" not in warning


def test_good_models_and_results_without_baselines_have_no_warning(tmp_path: Path) -> None:
    good = grid(tmp_path, {"one": 0.5, "two": 0.6}, 0.4)
    assert weak_models(good) == [] and "Warning" not in as_markdown(good)
    rows = [replace(each, cells=tuple(replace(c, baselines={}) for c in each.cells)) for each in good.rows]
    assert weak_models(replace(good, rows=tuple(rows))) == []
    unfinished = row("lost", {"a": "x"}, [cell(tmp_path / "x", 7, {"a": "x"}, status="failed")])
    assert weak_models(result([unfinished], {"a": ["x"]})) == []


@pytest.mark.parametrize("collapsed", [False, True])
def test_a_score_that_is_always_zero_and_collapsed_models_are_named(tmp_path: Path, collapsed: bool) -> None:
    _, floor, *others = weak_models(grid(tmp_path, {"one": 0.0, "two": 0.0}, 0.4, collapsed=collapsed))
    assert floor == f"{BLEU} is 0 for every model."
    assert [text.endswith("4 of 4.") for text in others] == [True] * collapsed
