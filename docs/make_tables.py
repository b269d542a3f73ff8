"""Fills the tables of docs/method.md and docs/results/ablations.md from docs/results/GRID/result.json.

python docs/make_tables.py           writes them
python docs/make_tables.py --check   exits with 1 if they are stale
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from framework.grid.page import PageData
from framework.grid.results import GridResult, Row
from framework.grid.table import as_markdown
from framework.grid.wording import is_significant, spread_text

DOCS = Path(__file__).resolve().parent
DATA = {"breast": "phantom", "busbra": "BUS-BRA"}  # first word of a grid's name -> heading of its columns
METRICS = {"test/bleu_4": "BLEU-4", "test/cider": "CIDEr", "test/findings_f1": "findings F1"}
BLOCK = re.compile(r"(?s)(<!-- (table|grid): (\w+) -->\n).*?(<!-- end -->)")


def result_of(grid: str) -> GridResult:
    return PageData.from_json((DOCS / "results" / grid / "result.json").read_text(encoding="utf-8")).result


def cell(row: Row, metric: str) -> str:
    return spread_text(row.values[metric], 3) + r" \*" * is_significant(row.versus[metric])


def two_grids(name: str) -> str:
    """Grids `breast_NAME` and `busbra_NAME` side by side, which have the same rows."""
    grids = [result_of(f"{data}_{name}") for data in DATA]
    head = ["", *(f"{title} {metric}" for title in DATA.values() for metric in METRICS.values())]
    lines = [head, ["---", *("---:" for _ in head[1:])]]
    for first in grids[0].rows:
        rows = [next(row for row in grid.rows if row.label == first.label) for grid in grids]
        lines.append([first.label, *(cell(row, metric) for row in rows for metric in METRICS)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def one_grid(name: str) -> str:
    """The table of a grid; the page has one legend for all of them."""
    return as_markdown(result_of(name)).partition("\n\n")[0] + "\n"


def filled(text: str) -> str:
    make = {"table": two_grids, "grid": one_grid}
    return BLOCK.sub(lambda block: f"{block[1]}{make[block[2]](block[3])}{block[4]}", text)


def main(arguments: list[str]) -> int:
    status = 0
    for page in (DOCS / "method.md", DOCS / "results" / "ablations.md"):
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if "--check" not in arguments:
            page.write_text(after, encoding="utf-8")
        elif after != before:
            print(f"stale: {page.relative_to(DOCS.parent)}; run: python docs/make_tables.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
