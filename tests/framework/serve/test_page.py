"""The page of `serve` in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from browser import PHONE, check_accessible, check_no_sideways_scroll, keep_screenshot, page_of
from PIL import Image
from running import Running

from framework.build import build_dataset, run_recipe

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("fastapi", reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def address(smoke_run: Path, work: Path) -> Iterator[str]:
    """Of a server that was started as a user starts it."""
    words = ("serve", str(smoke_run), str(smoke_run / "model"), "--port", "0")
    with Running(*words, cwd=work, scratch=work / "served") as server:
        server.until("schema")
        found = re.search(r"^open +(http://127\.0\.0\.1:\d+)$", server.text, re.MULTILINE)
        assert found is not None, server.text
        yield found[1]


@pytest.fixture(scope="module")
def views(smoke_run: Path, work: Path) -> list[Path]:
    exam = build_dataset(run_recipe(smoke_run)).splits()["test"][0]
    files = [work / f"view_{number}.png" for number in range(2)]
    for file, view in zip(files, [*exam.views, *exam.views]):
        Image.fromarray(view.load()).save(file)
    return files


def write_report(page: Page, files: list[Path]) -> None:
    """Uploads the views, and waits for the report."""
    before = page.locator(".exam").count()
    page.locator("#images").set_input_files([str(file) for file in files])
    page.wait_for_function("count => document.querySelectorAll('.exam').length > count", arg=before)
    page.wait_for_function("() => !document.querySelector('.writing')")


def heat_is_shown(page: Page) -> bool:
    """Whether each view shows its map, and one of them is not empty."""
    return page.evaluate(
        "(maps => maps.every(map => !map.hidden) && maps.some(map => map.getContext('2d')"
        ".getImageData(0, 0, map.width, map.height).data.some((value, i) => i % 4 === 3 && value)))"
        "([...document.querySelectorAll('.exam canvas')])"
    )


def test_images_give_a_report_whose_words_show_heat_under_the_mouse_and_by_keyboard(
    address: str, views: list[Path]
) -> None:
    with page_of(address) as page:
        assert "Research software, not for diagnosis" in page.inner_text("header")
        assert "64 exams in train" in page.inner_text(".about")
        page.locator("#images").set_input_files([str(file) for file in views])
        page.wait_for_selector(".writing .word.written")
        assert heat_is_shown(page), "while the report appears"
        page.wait_for_function("() => !document.querySelector('.writing')")
        words = page.locator(".word")
        assert not heat_is_shown(page) and words.count() > 3
        words.nth(1).hover()
        assert heat_is_shown(page) and "%" in page.inner_text(".exam output")
        page.mouse.move(0, 0)
        assert not heat_is_shown(page)
        words.first.focus()
        page.keyboard.press("ArrowRight")
        assert heat_is_shown(page) and words.nth(1).evaluate("word => word === document.activeElement")
        assert page.locator(".view img").count() == len(views)
        keep_screenshot(page, "serve-light")


def test_other_reports_and_nearest_exams_stand_beside_the_report(address: str, views: list[Path]) -> None:
    with page_of(address, reduced_motion="reduce") as page:
        write_report(page, views)
        for title, least in (("other reports of the beam", 1), ("nearest training exams", 3)):
            details = page.locator("#exams details", has_text=title)
            details.locator("summary").click()
            assert details.locator("p").count() >= least and details.locator("p").first.is_visible()
        page.locator("#model").select_option(index=1)  # the model without its run
        write_report(page, views)
        assert page.locator("#exams > section").first.get_by_text("nearest training exams").count() == 0


def test_an_image_of_another_kind_has_a_warning(address: str, work: Path) -> None:
    noise = work / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)).save(noise)
    with page_of(address, reduced_motion="reduce") as page:
        write_report(page, [noise])
        assert "view 1 is unlike the training images" in page.inner_text(".exam .lacks")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_and_fits_a_phone(address: str, views: list[Path], scheme: str) -> None:
    with page_of(address, viewport=PHONE, color_scheme=scheme, reduced_motion="reduce") as page:
        check_no_sideways_scroll(page)
        check_accessible(page)
        write_report(page, views)
        for details in page.locator("#exams details, .about:not([hidden]) details").all():
            details.locator("summary").click()
        check_no_sideways_scroll(page)
        check_accessible(page)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")
        keep_screenshot(page, f"serve-phone-{scheme}")


def test_the_page_on_a_dark_desk(address: str, views: list[Path]) -> None:
    with page_of(address, color_scheme="dark", reduced_motion="reduce") as page:
        write_report(page, views)
        page.locator(".word").nth(2).hover()
        check_accessible(page)
        keep_screenshot(page, "serve-dark")


def test_labels_can_be_chinese(address: str, views: list[Path]) -> None:
    with page_of(address, reduced_motion="reduce") as page:
        page.locator("#language").select_option("zh")
        assert "研究软件" in page.inner_text("header")
        write_report(page, views)
        assert "最相近的训练检查" in page.inner_text("#exams")
        check_accessible(page)
        page.locator("#language").select_option("en")
        assert "nearest training exams" in page.inner_text("#exams")
        assert "研究软件" not in page.inner_text("header")


def test_a_file_that_is_no_image_is_named_with_its_code(address: str, work: Path) -> None:
    (work / "notes.png").write_text("no image")
    with page_of(address, allowed="400 (Bad Request)") as page:
        page.locator("#images").set_input_files(str(work / "notes.png"))
        page.wait_for_function("() => document.querySelector('#error').textContent")
        assert "notes.png" in page.inner_text("#error") and "[broken-image]" in page.inner_text("#error")
        check_accessible(page)
