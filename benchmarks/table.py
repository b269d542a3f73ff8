"""Prints measurements as a table, and writes them as JSON."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path


def report(machine: str, rows: list[tuple[str, str, float]], out: Path | None) -> None:
    """Prints rows of (what, unit, value). `machine` names the machine and the versions of libraries."""
    today = str(date.today())
    print(f"{machine}, {today}")
    for what, unit, value in rows:
        print(f"{what:52} {value:9.3f} {unit}")
    if out:
        measured = {
            "machine": machine,
            "date": today,
            "rows": [dict(zip(("what", "unit", "value"), row)) for row in rows],
        }
        out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
