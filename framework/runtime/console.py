"""What a command prints: lines from the main process alone, tables, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from framework.runtime.live import above_display, is_main_process

LINE = 100  # columns
CUT = " ..."  # ends a text that was cut
GAP = 2  # columns between those of a table
VALUE_WIDTH = 24  # a column of cells up to this width holds values, which are never wrapped; wider ones hold prose


def print0(text: str) -> None:
    """A line for people, from the main process alone, above a display that may be open."""
    if is_main_process():
        with above_display():
            print(text, flush=True)


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, *, numeric: bool = False
) -> None:
    """Prints a table from the main process.

    A pipe gets one line per row and no title. A terminal gets prose wrapped to its width but values whole; where even
    that does not fit, each row is printed as a block of `header  value` lines.

    Args:
        numeric: aligns all columns but the first to the right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else 100_000)

    def columns() -> Table:
        if not is_terminal:
            return Table(box=None, padding=(0, GAP, 0, 0))
        inner: dict[str, Any] = {"show_edge": False, "pad_edge": False, "padding": (0, GAP - 1, 0, 0)}
        return Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", **inner)

    table, needed = columns(), -GAP
    for index, name in enumerate(header):
        widest = max(Text(row[index]).cell_len for row in [header, *rows])
        is_value = widest <= VALUE_WIDTH
        needed += min(widest, VALUE_WIDTH) + GAP
        table.add_column(
            Text(name),
            justify="right" if numeric and index else "left",
            no_wrap=is_value,
            min_width=None if is_value else VALUE_WIDTH,
            overflow="fold",  # a long path is broken, not cut
        )
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a cell such as [a, b] is not markup
    if needed > console.width:
        table = columns()
        table.show_header = False
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            for name, cell in zip(header, row):
                table.add_row(Text(name, style="bold"), Text(cell), end_section=name == header[-1])
    with console.capture() as captured:
        console.print(table)
    print0("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def wrapped(text: str, indent: str, most: int) -> str:
    """Text in at most `most` lines of `LINE` columns, of which the others are indented like the first one.

    Args:
        indent: the beginning of the first line.
    """
    from rich.console import Console
    from rich.text import Text

    # A character of Chinese takes two columns.
    lines = [line.plain.rstrip() for line in Text(text).wrap(Console(), LINE - len(indent))]
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1][: -len(CUT)]}{CUT}"]
    return "\n".join(f"{' ' * len(indent) if number else indent}{line}" for number, line in enumerate(lines or [""]))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
