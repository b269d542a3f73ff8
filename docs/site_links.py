"""For mkdocs: what a link out of docs/ becomes. The site holds docs/ alone, so such a link tells the path instead."""

from __future__ import annotations

import posixpath
import re
from typing import Any

FENCE = re.compile(r"(?ms)^(```.*?^```$)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces links in the text, and leaves blocks of code alone."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def told(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = posixpath.normpath(posixpath.join(folder, target.partition("#")[0]))
        if path.startswith("docs/"):
            return link[0]
        return text if path in text else f"{text} (`{path}`)"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(told, part) for part in parts)
