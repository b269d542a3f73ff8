"""A page as tests look at it: its elements, its text and its scripts."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

from harness import ROOT

EMPTY = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements of a page in their order; fails where tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.styles = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), attrs
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [at for name, at in self.elements if name == tag and kind in [*(at.get("class") or "").split(), ""]]


def check_offline(page: Page) -> None:
    """Fails if a page loads something, runs a script that is not its own, or lacks the policy against both."""
    (script,) = page.scripts
    assert script == (ROOT / "framework" / "pages" / "templates" / "page.js").read_text(encoding="utf-8")
    (policy,) = [at["content"] or "" for at in page.all("meta") if at.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "href") or re.match(r"data:image/(png|webp);|#|[\w.%/-]*$", value or ""), value
            assert "url(" not in (value or "") or name not in ("style", "fill"), value
    assert not re.search(r"@import|url\(|//\w", page.styles)
