"""Makes docs/benchmarks.md and its plots from benchmarks/results/*.json.

python -m benchmarks.page           writes them
python -m benchmarks.page --check   exits with 1 if they are stale
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.catalog import FOLDER, Benchmark, benchmarks
from framework.pages.plot import INK, SERIES, STYLED, Plot

ROOT = FOLDER.parent
PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images" / "benchmarks"
STYLE = ROOT / "framework" / "pages" / "templates" / "style.css"
COLOURS = re.compile(r"(?ms)^:root \{.*?^\}|^@media \(prefers-color-scheme: dark\) \{.*?^\}")
OPENING = """# Benchmarks

<!-- python -m benchmarks.page makes this page from benchmarks/results; make docs runs it. -->

`make bench` runs all benchmarks, `make bench NAME=decoding` one, and `make bench QUICK=1` all of them at sizes of
seconds, which writes no figures. Each measures ours and the alternatives in turn, round by round, so that load from
other work meets all of them alike; results of a bounded cache are forgotten before each run. Tables have the median of
the rounds with the lowest and the highest, and how many times as good ours is (the median of the ratios of each round,
with the lowest and the highest): above 1, ours is faster or smaller. *Others* are the cores that other processes used
on average meanwhile. No test checks a speed, since the machines that run tests are busy; a test runs every benchmark
with `--quick`.
"""


def contents() -> Iterator[tuple[Path, str]]:
    """The page and its plots."""
    sections, missing = [OPENING], []
    for benchmark in benchmarks().values():
        sections.append(f"## {benchmark.name.capitalize()}\n\n{_about(benchmark)}\n")
        for device in benchmark.devices:
            path = benchmark.result(device)
            if not path.exists():
                missing.append(f"{_program(benchmark, device)}\n")
                sections.append(f"Not measured on a {'GPU' if device == 'cuda' else 'CPU'} yet.\n")
                continue
            result = load(path, benchmark, device)
            sections.append(_measured(path, result))
            for name, title, plot in plots(result):
                file = IMAGES / f"{path.stem}-{name}.svg"
                yield file, alone(plot, title, digest(result))
                sections.append(f"![{title}]({file.relative_to(PAGE.parent).as_posix()})\n")
            sections.append(table(result["rows"], growing="fits" in result))
            if "fits" in result:
                sections.append(exponents(result["fits"]))
    if missing:
        sections.append("## Missing\n\nThese have not been run.\n\n```bash\n" + "".join(missing) + "```\n")
    yield PAGE, "\n".join(sections)


def load(path: Path, benchmark: Benchmark, device: str) -> dict[str, Any]:
    """The result in a file.

    Raises:
        ValueError: it has no command of this benchmark, or its sizes are those of a test.
    """
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    words = result.get("command", "").split()
    if words[:3] != ["python", "-m", f"benchmarks.{benchmark.name}"] or "--quick" in words:
        raise ValueError(f"{path}: expected the command of full sizes of {benchmark.name}, found {' '.join(words)!r}")
    if (result["device"] == "cpu") != (device == "cpu"):
        raise ValueError(f"{path}: measured on {result['device']}, expected {device}")
    return result


def _program(benchmark: Benchmark, device: str) -> str:
    return f".venv/bin/python -m benchmarks {benchmark.name}{'' if device == 'cpu' else f' --device {device}'}"


def _about(benchmark: Benchmark) -> str:
    """The docstring, whose first paragraph ends with a link to the code."""
    first, *others = benchmark.about.split("\n\n")
    first = f"{first} [Code](../benchmarks/{benchmark.name}.py)."
    return "\n\n".join([textwrap.fill(first, 120, break_long_words=False, break_on_hyphens=False), *others])


def _measured(path: Path, result: dict[str, Any]) -> str:
    """The command, the machine and the date."""
    where = result["machine"] if result["device"] == "cpu" else f"{result['device']}, {result['machine']}"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    load = f"load {result['load']} at the start, others {result['cores_used_by_others']} cores"
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
    rounds = f"{result['rounds']} round{'s' * (result['rounds'] > 1)}"
    file = f"[{path.name}](../benchmarks/results/{path.name})"
    facts = (
        f"{result['date']}, {where}, {result['cores']} cores, {threads}, {rounds}; {load}; commit {result['commit']}; "
        f"{versions}; {file}."
    )
    facts = textwrap.fill(facts, 120, break_long_words=False, break_on_hyphens=False)
    return f"```bash\n.venv/bin/{result['command']}\n```\n\n{facts}\n"


def table(rows: Sequence[dict[str, Any]], growing: bool) -> str:
    """A row for each alternative, or for ours where there is none; of growth the values alone."""
    if growing:
        lines = ["| what | time |", "|---|---|", *(f"| {row['what']} | {value(row)} |" for row in rows)]
        return "\n".join(lines) + "\n"
    lines = ["| what | ours | alternative | ours is |", "|---|---|---|---|"]
    for what, group in itertools.groupby(rows, key=lambda row: row["what"]):
        ours, *others = group
        own = f"{'' if ours['who'] == 'ours' else ours['who'] + ': '}{value(ours)}"
        if not others:
            lines.append(f"| {what} | {own} | | |")
        lines += [f"| {what} | {own} | {other['who']}: {value(other)} | {ratio(other)} |" for other in others]
    return "\n".join(lines) + "\n"


def exponents(fits: Sequence[dict[str, Any]]) -> str:
    lines = ["| what | grows with | exponent |", "|---|---|---|"]
    for fit in fits:
        above = ", **more than linear**" if fit["above"] else ""
        lines.append(f"| {fit['what']} | {fit['over']} | {fit['exponent']:.2f}{above} |")
    return "\n".join(lines) + "\n"


def value(row: dict[str, Any]) -> str:
    spread = "" if row["low"] == row["high"] else f" ({figure(row['low'])} to {figure(row['high'])})"
    return f"{figure(row['median'])} {row['unit']}{spread}"


def ratio(row: dict[str, Any]) -> str:
    spread = f" ({figure(row['ratio_low'])} to {figure(row['ratio_high'])})"
    return f"{figure(row['ratio'])}x{'' if row['ratio_low'] == row['ratio_high'] else spread}"


def figure(number: float) -> str:
    """Three digits."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:#.3g}".rstrip(".")


def plots(result: dict[str, Any]) -> Iterator[tuple[str, str, Plot]]:
    """Name, title and plot of each picture of a result."""
    if "fits" in result:
        for over in dict.fromkeys(fit["over"] for fit in result["fits"]):
            yield over, f"Time over {over}", growth_plot(over, [fit for fit in result["fits"] if fit["over"] == over])
        return
    others = [row for what, group in itertools.groupby(result["rows"], lambda row: row["what"]) for row in [*group][1:]]
    if others:
        yield "ratio", f"{result['benchmark'].capitalize()}: ours against the alternatives", ratio_plot(others)


@STYLED
def ratio_plot(rows: Sequence[dict[str, Any]]) -> Plot:
    """How many times as good ours is, with the spread over rounds; one series for each alternative."""
    whos = list(dict.fromkeys(row["who"] for row in rows))
    plot = Plot("times as good as the alternative", width=860, height=90 + 26 * len(rows))
    plot.log_x()
    plot.y_labels([row["what"] for row in rows])
    plot.axes.set_yticks(range(len(rows)), [row["what"] for row in rows])  # in full
    plot.level(1, "equal")
    for place, row in enumerate(rows):
        series = whos.index(row["who"])
        plot.line([(row["ratio_low"], place), (row["ratio_high"], place)], series)
        plot.mark(row["ratio"], place, series, size=8)
        plot.beside(place, f"{figure(row['ratio'])}x {row['who']}")
    return plot


@STYLED
def growth_plot(over: str, fits: Sequence[dict[str, Any]]) -> Plot:
    """Log time over log size, with a name and an exponent at the end of each line."""
    plot = Plot(over, "seconds", width=860, height=120 + 30 * len(fits))
    plot.log_x()
    plot.axes.set_xticks(fits[0]["sizes"], [f"{size:,}" for size in fits[0]["sizes"]])
    plot.axes.set_yscale("log")
    plot.axes.yaxis.set(
        major_locator=LogLocator(subs=(1, 3)),
        major_formatter=FuncFormatter(lambda seconds, _: f"{seconds:g}"),
        minor_locator=NullLocator(),
    )
    plot.right = 290
    for series, fit in enumerate(fits):
        points = list(zip(fit["sizes"], fit["seconds"], strict=True))
        plot.line(points, series)
        for point in points:
            plot.mark(*point, series, size=6)
    ordered = sorted(enumerate(fits), key=lambda each: each[1]["seconds"][-1])
    for place, (series, fit) in enumerate(ordered):
        colour = INK[f"c{series % SERIES}"]
        plot.axes.annotate(
            f"{fit['what']}: {fit['exponent']:.2f}", (fit["sizes"][-1], fit["seconds"][-1]),
            (1.12, (place + 0.5) / len(fits)), textcoords="axes fraction", va="center", color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "relpos": (0, 0.5)},
        )  # fmt: skip
    return plot


def alone(plot: Plot, title: str, of: str) -> str:
    """A plot as a file, in the colours of the pages, light or dark, with a ground of its own to be readable on both."""
    colours = "\n".join(COLOURS.findall(STYLE.read_text(encoding="utf-8")))
    rules = f"{colours}\ntext {{ font-family: system-ui, sans-serif; }}\n.ground {{ fill: var(--paper); }}"
    inline = str(plot.svg(title))
    inside = f'<metadata>{of}</metadata><style>\n{rules}\n</style><rect class="ground" width="100%" height="100%"/>'
    size = f'width="{plot.width:g}" height="{plot.height:g}"'
    return (
        re.sub(r"<svg ([^>]*)>", rf'<svg xmlns="http://www.w3.org/2000/svg" {size} \1>{inside}', inline, count=1) + "\n"
    )


def digest(result: dict[str, Any]) -> str:
    """Names the figures that a plot shows."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


def stale(path: Path, content: str) -> bool:
    """Whether a file does not show its results. Of a plot the figures count: matplotlib decides how it is drawn."""
    if not path.exists():
        return True
    found = path.read_text(encoding="utf-8")
    if path.suffix == ".svg":
        (of,) = re.findall("<metadata>.*?</metadata>", content)
        return of not in found
    return found != content


def main(arguments: Sequence[str]) -> int:
    made = dict(contents())
    gone = [path for path in IMAGES.glob("*.svg") if path not in made]
    if "--check" in arguments:
        wrong = [path for path, content in made.items() if stale(path, content)] + gone
        for path in wrong:
            print(f"stale: {path.relative_to(ROOT)}; run: python -m benchmarks.page", file=sys.stderr)
        return bool(wrong)
    for path in gone:
        path.unlink()
    for path, content in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
