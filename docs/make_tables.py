"""Fills the tables of docs/method.md with what the shipped grids came to (docs/results/GRID/table.csv).

python docs/make_tables.py           writes them
python docs/make_tables.py --check   exits with 1 where they are stale
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "method.md"
DATA = ("breast", "busbra")  # the first word of the grids' names, in the order of the columns
NAMES = {"breast": "phantom", "busbra": "BUS-BRA"}
METRICS = {"test/bleu_4": "BLEU-4", "test/cider": "CIDEr", "test/findings_f1": "findings F1"}
BLOCK = re.compile(r"(?s)(<!-- table: (\w+) -->\n).*?(<!-- end -->)")


def read(grid: str) -> dict[str, dict[str, str]]:
    """The rows of a grid's table, by their names."""
    with (DOCS / "results" / grid / "table.csv").open(encoding="utf-8", newline="") as lines:
        return {row["row"]: row for row in csv.DictReader(lines)}


def cell(row: dict[str, str], metric: str) -> str:
    shown = f"{float(row[f'{metric} mean']):.3f} ± {float(row[f'{metric} deviation']):.3f}"
    p = row[f"{metric} p_holm"]
    return f"{shown} \\*" if p and float(p) < 0.05 else shown


def table(of: str) -> str:
    """Grids `breast_OF` and `busbra_OF` side by side, which have the same rows."""
    grids = {name: read(f"{name}_{of}") for name in DATA}
    head = ["", *(f"{NAMES[name]} {told}" for name in DATA for told in METRICS.values())]
    lines = [head, ["---", *("---:" for _ in head[1:])]]
    for label in grids[DATA[0]]:
        lines.append([label, *(cell(grids[name][label], metric) for name in DATA for metric in METRICS)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(words: list[str]) -> int:
    before = PAGE.read_text(encoding="utf-8")
    after = BLOCK.sub(lambda block: f"{block[1]}{table(block[2])}{block[3]}", before)
    if "--check" in words:
        if after != before:
            print(f"stale: {PAGE.relative_to(DOCS.parent)}; run: python docs/make_tables.py", file=sys.stderr)
        return int(after != before)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
