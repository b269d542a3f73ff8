"""Prints what was measured as a table, and writes it as JSON where asked to."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path


def tell(machine: str, rows: list[tuple[str, str, float]], out: Path | None) -> None:
    """Rows of what was measured, its unit and value; `machine` says on what, and with which versions."""
    today = str(date.today())
    print(f"{machine}, {today}")
    for what, unit, value in rows:
        print(f"{what:52} {value:9.3f} {unit}")
    if out:
        told = {"machine": machine, "date": today, "rows": [dict(zip(("what", "unit", "value"), row)) for row in rows]}
        out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
