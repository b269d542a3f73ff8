"""Reads the records of a run for its curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from framework.runtime.errors import UserError
from framework.runtime.files import read_lines


class Record(NamedTuple):
    name: str
    step: int
    value: float


def read_records(path: Path, name: str = "") -> Iterator[Record]:
    """Yields the records of a metrics.jsonl, without those whose value is NaN or infinite.

    A last line that is still being written is skipped.

    Args:
        name: of the records that are wanted; empty: all.

    Raises:
        UserError: a line is not a record.
    """
    word = json.dumps(name)  # most lines have other names, and need no parsing
    for number, line in enumerate(read_lines(path, errors="replace"), 1):
        if (name and word not in line) or not line.endswith("\n"):
            continue
        try:
            fields = json.loads(line)
            record = Record(fields["name"], fields["step"], float(fields["value"]))
        except (ValueError, KeyError, TypeError) as error:
            place = f"{path.name}:{number}"
            raise UserError("damaged-file", f"not a record ({error!r})", place=place) from None
        if math.isfinite(record.value) and name in ("", record.name):
            yield record
