"""Times ours and its alternatives in turn, round by round, so that load from other work meets all of them alike."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch


def compare(what: str, unit: str, amount: float, works: Mapping[str, Callable[[], object]], rounds: int) -> list[Any]:
    """Runs every work once to warm up, then all of them `rounds` times in turn.

    Args:
        amount: of `unit` that one run of a work makes.
        works: by name; the first is ours.

    Returns:
        a row for each work: the median, lowest and highest rate, and the median over rounds of the ratio of our rate to
        its own.
    """
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    ours = next(iter(works))
    rows = []
    for name, each in seconds.items():
        rates = [amount / s for s in each]
        ratios = [other / own for own, other in zip(seconds[ours], each, strict=True)]
        rows.append(
            {
                "what": what,
                "who": name,
                "unit": f"{unit}/s",
                "median": statistics.median(rates),
                "low": min(rates),
                "high": max(rates),
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
            }
        )
        print(
            f"{what:42} {name:34} {rows[-1]['median']:10.2f} {unit}/s   ours {rows[-1]['ratio']:6.2f}x "
            f"({rows[-1]['ratio_low']:.2f} to {rows[-1]['ratio_high']:.2f})",
            flush=True,
        )
    return rows


def exponent(seconds_by_size: Mapping[int, float]) -> float:
    """The exponent of growth: the slope of the logarithm of time over that of size."""
    sizes, seconds = np.log(list(seconds_by_size)), np.log(list(seconds_by_size.values()))
    return float(np.polyfit(sizes, seconds, 1)[0])


def parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="rows whose name contains this")
    return parser


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def write(rows: list[Any], options: argparse.Namespace, packages: tuple[str, ...]) -> None:
    """Writes rows with machine, versions, load and date."""
    if not options.out:
        return
    measured = {
        "machine": _processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in packages},
        "date": str(date.today()),
        "rounds": options.rounds,
        "rows": rows,
    }
    options.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
