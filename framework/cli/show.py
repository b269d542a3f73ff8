"""Tables: drawn on a terminal, aligned plain columns in a pipe, JSON where asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def show(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table with a line a row. In a pipe there is no title: it would be a line that no program expects."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*headers, box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))  # Text: a cell such as [a, b] is no markup
        Console().print(table)
        return
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def show_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
