"""Pages in a headless browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


@contextmanager
def page_of(url: str, *, allowed: str | None = None, **context: Any) -> Iterator[Page]:
    """Opens a page, and fails afterwards if it wrote an error to the console or asked another host for something.

    Args:
        allowed: part of the errors that the page may write.
        context: of Playwright, such as `viewport`, `color_scheme` or `reduced_motion`.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    errors: list[str] = []
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            page = browser.new_context(**{"viewport": DESK, **context}).new_page()
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(url)
            yield page
        finally:
            browser.close()
    own = urlsplit(url)
    unexpected = [each for each in errors if allowed is None or allowed not in each]
    assert not unexpected, unexpected
    foreign = [each for each in asked if urlsplit(each)[:2] != own[:2] and urlsplit(each).scheme != "data"]
    assert not foreign, foreign


def check_accessible(page: Page) -> None:
    """Fails if axe finds something serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (each["id"], [node["html"][:200] for node in each["nodes"][:3]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert not serious, serious


def check_no_sideways_scroll(page: Page) -> None:
    width, needed = page.evaluate("[innerWidth, document.documentElement.scrollWidth]")
    assert needed <= width


def keep_screenshot(page: Page, name: str) -> None:
    """Writes a picture of the whole page to the folder that the variable SCREENSHOTS names, if it does."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)
