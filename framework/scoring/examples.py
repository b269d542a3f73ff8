"""Generated reports to read beside their references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from framework.runtime.console import print0, wrapped
from framework.runtime.files import read_lines

SHOWN = 3
LINES = 4  # of a report


def print_examples(predictions: Path) -> None:
    """Prints reports of exams with different references, since the first exams of a split may all be normal.

    Args:
        predictions: a file of `evaluate_split`.
    """
    by_reference: dict[str, Any] = {}
    for row in map(json.loads, read_lines(predictions)):
        by_reference.setdefault(row["reference"], row)
    for row in list(by_reference.values())[:SHOWN]:
        print0(f"\nexam {row['id']}")
        print0(wrapped(row["reference"], "  reference  ", LINES))
        print0(wrapped(row["prediction"], "  generated  ", LINES))
