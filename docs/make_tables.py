"""Makes the tables of the docs from docs/results/GRID/result.json: those of method.md and results/ablations.md, and the
files beside each result.json.

python docs/make_tables.py           writes them
python docs/make_tables.py --check   exits with 1 if they are stale
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from framework.grid.page import PageData
from framework.grid.results import GridResult, Row
from framework.grid.table import as_csv, as_latex, as_markdown, cells_csv
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
    """The warnings and the table of a grid; the page has one legend for all of them."""
    return as_markdown(result_of(name)).partition("\n\n- ")[0] + "\n"


def filled(text: str) -> str:
    make = {"table": two_grids, "grid": one_grid}
    return BLOCK.sub(lambda block: f"{block[1]}{make[block[2]](block[3])}{block[4]}", text)


def contents() -> Iterator[tuple[Path, str]]:
    """Every file that is made here, and what it should contain."""
    for page in (DOCS / "method.md", DOCS / "results" / "ablations.md"):
        yield page, filled(page.read_text(encoding="utf-8"))
    for path in sorted(DOCS.glob("results/*/result.json")):
        result = result_of(path.parent.name)
        yield path.with_name("table.csv"), as_csv(result)
        yield path.with_name("cells.csv"), cells_csv(result)
        yield path.with_name("table.tex"), as_latex(result)


def main(arguments: list[str]) -> int:
    status = 0
    for path, content in contents():
        if "--check" not in arguments:
            path.write_bytes(content.encode())
        elif path.read_bytes() != content.encode():
            print(f"stale: {path.relative_to(DOCS.parent)}; run: python docs/make_tables.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
