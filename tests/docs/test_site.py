"""The documentation builds into a site that loads nothing from elsewhere, and its links resolve there and on GitHub."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from harness import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FENCE = re.compile(r"(?ms)^ *(`{3,}).*?^ *\1$")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"(?m)^#{1,6} +(.+?) *#*$")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs").with_suffix("") for page in PAGES if page.is_relative_to(ROOT / "docs")}
    built = {page.parent.relative_to(site) for page in site.rglob("index.html")}
    grids = {result.parent.relative_to(ROOT / "docs") for result in (ROOT / "docs").rglob("result.json")}
    assert grids and {Path(), *pages, *grids} - {Path("index")} == built


def test_each_grid_has_a_page_that_the_ablations_link_to(site: Path) -> None:
    text = (site / "results" / "ablations" / "index.html").read_text(encoding="utf-8")
    grids = [result.parent.name for result in (ROOT / "docs" / "results").rglob("result.json")]
    assert [grid for grid in grids if f'href="../{grid}/"' not in text] == []


def test_search_finds_words_of_the_code(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    for word in ("faiss_kmeans", "_delete_"):
        assert any(word in entry["text"] + entry["title"] for entry in index["docs"]), word


class Loads(HTMLParser):
    """The addresses that a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.found += [given[name] for name in ("src", "poster", "data") if name in given]
        self.found += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        self.found += in_styles(given.get("style", ""))
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(given.get("href", ""))
        if "mermaid" in given.get("class", "").split():
            self.found.append("https://unpkg.com, for mermaid")


def in_styles(text: str) -> list[str]:
    return re.findall(r"""(?:@import\s+|url\()\s*["']?([^"')\s;]+)""", text)


def from_another_host(address: str) -> bool:
    return not address.startswith("data:") and bool(urlsplit(address).netloc or urlsplit(address).scheme)


def loads(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".css":
        return in_styles(text)
    parser = Loads()
    parser.feed(text)
    return parser.found + [each for style in re.findall(r"(?s)<style.*?</style>", text) for each in in_styles(style)]


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    found = {file: loads(file) for file in files}
    assert sum(map(len, found.values())) > 100
    assert {
        str(file): far
        for file, all_of in found.items()
        if (far := [each for each in all_of if from_another_host(each)])
    } == {}


def test_an_image_of_another_host_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="//a.b/c.png"><style>@import "https://a.b/c.css"</style><a href="https://a.b">', "utf-8")
    assert [each for each in loads(page) if from_another_host(each)] == ["//a.b/c.png", "https://a.b/c.css"]


def anchors(text: str) -> set[str]:
    """Anchors of the headings as GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def broken(page: Path, text: str) -> Iterator[str]:
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            yield f"{link}: no such file"
        elif parts.fragment and parts.fragment not in anchors(target.read_text(encoding="utf-8")):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_resolves_as_plain_markdown(page: Path) -> None:
    assert list(broken(page, page.read_text(encoding="utf-8"))) == []


def test_a_broken_link_and_a_broken_anchor_are_found() -> None:
    text = (
        "# A b: `c`\n\n## Twice\n\n## Twice\n\n[1](#a-b-c) [2](#twice-1) [3](gone.md) [4](README.md#nowhere) `[5](no)`"
    )
    expected = ["#a-b-c: no such heading", "#twice-1: no such heading", "gone.md: no such file"]
    assert list(broken(ROOT / "README.md", text)) == [*expected, "README.md#nowhere: no such heading"]
    assert anchors(text) == {"a-b-c", "twice", "twice-1"}
