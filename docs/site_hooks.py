"""Hooks of mkdocs: links that leave docs/, and the pages of grids, drawn from docs/results/*/result.json."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from framework.grid.page import PageData, draw_page

FENCE = re.compile(r"(?ms)^(```.*?^```$)")
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]+)\)")
RESULT = re.compile(r"\[result\.json\]\(([^)\s]+)/result\.json\)")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Adds the page of each grid beside its result.json."""
    for file in [file for file in files if posixpath.basename(file.src_uri) == "result.json"]:
        data = PageData.from_json(Path(file.abs_src_path).read_text(encoding="utf-8"))
        uri = posixpath.join(posixpath.dirname(file.src_uri), "index.html")
        files.append(File.generated(config, uri, content=draw_page(data)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces links that leave docs/, which the site lacks, by their path, and adds links to the pages of grids. Code
    blocks stay as they are.
    """
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def path_instead(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = posixpath.normpath(posixpath.join(folder, target.partition("#")[0]))
        if path.startswith("docs/"):
            return link[0]
        return text if path in text else f"{text} (`{path}`)"

    parts = FENCE.split(RESULT.sub(r"[page with plots](\1/index.html), \g<0>", markdown))
    return "".join(part if part.startswith("```") else OUTSIDE.sub(path_instead, part) for part in parts)
