"""The pages of a run, of several runs and of a grid, as a person sees and uses them in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from browser import PHONE, check_accessible, check_no_sideways_scroll, keep_screenshot, page_of
from hand_made import two_axes, write_curve

from framework.evaluation.report import compare_runs
from framework.grid.page import PageData, draw_page

VIEWS: dict[str, dict[str, Any]] = {"light": {}, "dark": {"color_scheme": "dark"}, "phone": {"viewport": PHONE}}


@pytest.fixture(scope="module")
def pages(smoke_run: Path, work: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The address of each page."""
    home = tmp_path_factory.mktemp("pages")
    other = home / "smoke" / "other"
    other.parent.mkdir()
    other.symlink_to(smoke_run)
    grid = two_axes(home)
    for cell in (cell for row in grid.rows for cell in row.cells if cell.status == "done"):
        write_curve(cell.run, "val/bleu_4", [(step * 10, step / 20) for step in range(1, 6)])
    (home / "grid.html").write_text(draw_page(PageData.collect(grid, date(2031, 2, 3))), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)  # its image cache
        compare_runs([smoke_run, other], home / "compare.html")
    found = {"run": smoke_run / "report.html", "compare": home / "compare.html", "grid": home / "grid.html"}
    yield {name: path.as_uri() for name, path in found.items()}


@pytest.mark.parametrize("name", ["run", "compare", "grid"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_page_fits_its_window_and_is_accessible(name: str, view: str, pages: dict[str, str]) -> None:
    with page_of(pages[name], **VIEWS[view]) as page:
        check_no_sideways_scroll(page)
        check_accessible(page)
        keep_screenshot(page, f"{name}-{view}")


def test_pointing_at_a_word_and_focusing_it_show_where_the_model_looked(pages: dict[str, str]) -> None:
    with page_of(pages["run"]) as page:
        card = page.locator(".exam").first
        words, said = card.locator(".word"), card.locator("output")
        assert card.locator("canvas:visible").count() == 0
        words.nth(2).hover()
        assert card.locator("canvas:visible").count() == card.locator("img").count() > 0
        assert words.nth(2).inner_text() in said.inner_text() and "%" in said.inner_text()
        page.mouse.move(0, 0)
        assert card.locator("canvas:visible").count() == 0
        words.first.focus()
        page.keyboard.press("ArrowRight")
        assert card.locator(".word.shown").inner_text() == words.nth(1).inner_text()
        assert card.locator("canvas:visible").count() > 0
        drawn = card.locator("canvas").first.evaluate(
            "each => each.getContext('2d').getImageData(0, 0, each.width, each.height).data.some(value => value)"
        )
        assert drawn


def test_a_tap_shows_where_the_model_looked(pages: dict[str, str]) -> None:
    with page_of(pages["run"], viewport=PHONE, has_touch=True) as page:
        card = page.locator(".exam").first
        card.locator(".word").nth(1).tap()
        assert card.locator("canvas:visible").count() > 0


def test_all_exams_can_be_reached_ordered_chosen_and_searched(pages: dict[str, str]) -> None:
    with page_of(pages["run"]) as page:
        cards, said = page.locator(".exams .exam"), page.locator(".tools output")
        assert (cards.count(), said.inner_text()) == (12, "12 of 16 exams shown")
        page.get_by_role("button", name="Show more").click()
        assert cards.count() == 16 and not page.get_by_role("button", name="Show more").is_visible()
        worst = cards.first.get_attribute("aria-label")
        page.locator("[data-order]").select_option(label="best findings first")
        best = cards.first.get_attribute("aria-label")
        page.locator("[data-order]").select_option(label="as in the data")
        names = [str(each.get_attribute("aria-label")) for each in cards.all()]
        assert names == sorted(names) and worst != best
        page.get_by_role("searchbox").fill(names[3])
        assert [each.get_attribute("aria-label") for each in cards.all()] == [names[3]]
        page.get_by_role("searchbox").fill("")
        page.locator("[data-attribute]").select_option("lesion")
        page.locator("[data-kind]").select_option("wrong")
        chosen = cards.count()
        assert all("lesion" in each.locator(".findings").inner_text() for each in cards.all()) and chosen < 16
        cards.first.locator(".word").nth(1).hover()
        assert cards.first.locator("canvas:visible").count() > 0, "also on a card that was added later"


def test_reports_of_several_runs_stand_side_by_side(pages: dict[str, str]) -> None:
    with page_of(pages["compare"]) as page:
        card = page.locator(".exam").first
        assert card.locator("h3").all_inner_texts()[0] == "reference"
        assert len(card.locator("h3").all()) == 3 and card.locator("img").count() > 0


def test_a_grid_sorts_and_shows_the_chosen_metric(pages: dict[str, str]) -> None:
    with page_of(pages["grid"]) as page:
        column = page.locator("table.results th[aria-sort]").first
        column.get_by_role("button").click()
        assert column.get_attribute("aria-sort") == "ascending"
        page.get_by_label("Metric").select_option(index=1)
        assert [each.is_visible() for each in page.locator("section").all()] == [False, True]
