"""Times ours and its alternatives in turn, round by round, so that load from other work meets all of them alike.

A benchmark is a module of this folder with a `main` that measures by `rows_of` or `compare` and ends with `write`:

    DEVICES = ("cpu", "cuda")  # where it can run; without this line on the CPU alone

    def main() -> None:
        parse = parser(__doc__, DEVICES)
        parse.add_argument("--pairs", type=int, default=20_000)
        options = start(parse, quick={"pairs": 200})
        rows = compare("BLEU", "pairs", options.pairs, {"ours": ours, "theirs": theirs}, options.rounds)
        write(rows, options, ("pycocoevalcap",))

`python -m benchmarks NAME` runs it, a test runs it with `--quick`, and docs/benchmarks.md has its docstring, its
command and its rows.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
CODE = ("framework", "plugins", "recipes", "benchmarks/*.py")  # what the measured commit depends on


def parser(description: str | None, devices: Sequence[str] = ("cpu",)) -> argparse.ArgumentParser:
    """A parser of the options that every benchmark has; a benchmark adds its sizes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    parser.add_argument("--quick", action="store_true", help="sizes that run in seconds, to see that it works")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--device", choices=devices, default="cpu")
    return parser


def start(parser: argparse.ArgumentParser, quick: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """Reads the command line and chooses threads and device.

    Args:
        quick: defaults of options under `--quick`; what the command line states stays.
    """
    if "--quick" in sys.argv:
        parser.set_defaults(**{"rounds": 1, **(quick or {})})
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # also on a machine with a GPU
    torch.set_num_threads(options.threads)
    options.load, options.commit, options.started = os.getloadavg()[0], _commit(), _Usage()
    return options


def alternate(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work in each round, after a run of each to warm up. A run finds no bounded `lru_cache` of ours
    filled.
    """
    for work in works.values():
        _seconds(work)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(_seconds(work))
    return seconds


def forget() -> None:
    """Empties every bounded `lru_cache` of ours; else a later run would find what an earlier one has computed."""
    for kept in gc.get_objects():
        if type(kept) is functools._lru_cache_wrapper and _is_ours(kept) and kept.cache_parameters()["maxsize"]:
            kept.cache_clear()


def _seconds(work: Callable[[], object]) -> float:
    forget()
    start = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _is_ours(function: Any) -> bool:
    return (function.__module__ or "").partition(".")[0] in ("framework", "plugins")


def rows_of(what: str, unit: str, values: Mapping[str, Sequence[float]]) -> list[Any]:
    """A row for each name: the median, lowest and highest value.

    Each row has also the median, lowest and highest over rounds of how many times as good as it the first is, which is
    ours: more of a rate such as reports/s, less of seconds or bytes.

    Args:
        values: by name, one of each round.
    """
    ours = next(iter(values.values()))
    rows = []
    for name, each in values.items():
        pairs = list(zip(ours, each, strict=True))
        ratios = [first / own if unit.endswith("/s") else own / first for first, own in pairs]
        row = {"what": what, "who": name, "unit": unit}
        row |= dict(zip(("median", "low", "high"), _spread(each), strict=True))
        row |= dict(zip(("ratio", "ratio_low", "ratio_high"), _spread(ratios), strict=True))
        rows.append(row)
        print(
            f"{what:42} {name:34} {row['median']:10.4g} {unit:10} ours {row['ratio']:6.2f}x "
            f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
            flush=True,
        )
    return rows


def compare(what: str, unit: str, amount: float, works: Mapping[str, Callable[[], object]], rounds: int) -> list[Any]:
    """Rows of the rates of all works, timed in turn.

    Args:
        amount: of `unit` that one run of a work makes.
        works: by name; the first is ours.
    """
    seconds = alternate(works, rounds)
    return rows_of(what, f"{unit}/s", {name: [amount / s for s in each] for name, each in seconds.items()})


def exponent(seconds_by_size: Mapping[int, float]) -> float:
    """The exponent of growth: the slope of the logarithm of time over that of size."""
    sizes, seconds = np.log(list(seconds_by_size)), np.log(list(seconds_by_size.values()))
    return float(np.polyfit(sizes, seconds, 1)[0])


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


class _Usage:
    """Wall clock and CPU seconds so far: of the machine, and of this process with the children that ended."""

    def __init__(self) -> None:
        machine, own = psutil.cpu_times(), os.times()
        self.wall = time.perf_counter()
        self.others = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0) - sum(own[:4])


def write(rows: list[Any], options: argparse.Namespace, packages: tuple[str, ...], **more: Any) -> None:
    """Writes rows with command, machine, versions, load and date.

    Args:
        packages: distributions whose versions matter, beside torch.
        more: what else the benchmark found.
    """
    if not options.out:
        return
    now, before = _Usage(), options.started
    name = Path(sys.argv[0]).stem
    measured = {
        "benchmark": name,
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *_without_out(sys.argv[1:])]),
        "date": str(date.today()),
        "commit": options.commit,
        "machine": _processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": options.threads,
        "load": round(options.load, 2),
        "cores_used_by_others": round(max(0.0, (now.others - before.others) / (now.wall - before.wall)), 2),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in sorted({"torch", *packages})},
        "rounds": options.rounds,
        **more,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def _without_out(words: Sequence[str]) -> list[str]:
    """The arguments that decide what is measured."""
    kept = [word for word in words if not word.startswith("--out=")]
    if "--out" in kept:
        place = kept.index("--out")
        del kept[place : place + 2]
    return kept


def _commit() -> str:
    """The commit of the measured code, with + if files differ from it; empty outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "--", *CODE))
    except FileNotFoundError:  # no git
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
