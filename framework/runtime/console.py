"""One progress bar, on the main process alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def is_main_process() -> bool:
    """By the launcher's variables, so that it can be asked before (and without) torch."""
    return os.environ.get("RANK", "0") == "0"


def print0(text: str) -> None:
    """A line for people, from the main process alone, above a bar that may be running."""
    if is_main_process():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def progress_bar(items: Iterable[T], *, total: int, text: str, done: int = 0, shown: bool = True) -> Any:
    """Shows how far `items` are; in a log file, a line a minute instead of a moving bar."""
    return tqdm(
        items,
        total=total,
        initial=done,
        desc=text,
        disable=not (shown and is_main_process()),
        mininterval=0.2 if sys.stderr.isatty() else 60,
        dynamic_ncols=True,
        leave=False,
    )
