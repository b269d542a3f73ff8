"""Measures the start-up of the quick verbs, of Python, and of the import of torch that they avoid: `make bench`.

Prints a table, and with `--out FILE` writes it as JSON with machine, versions and date.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.table import report

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "python, doing nothing": ["-c", "pass"],
    "python, import torch": ["-c", "import torch"],
    "ls": ["launch.py", "ls"],
    "describe encoder/resnet": ["launch.py", "describe", "encoder/resnet"],
    "validate recipes/breast.yaml": ["launch.py", "validate", "recipes/breast.yaml"],
    "explain breast train": ["launch.py", "explain", "breast", "train"],
    "diff breast smoke": ["launch.py", "diff", "breast", "smoke"],
    "schema": ["launch.py", "schema"],
}


def seconds(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    took: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.repeats + 1):  # in turns, so that a busy moment falls on all of them; the first warms up
        for name, words in COMMANDS.items():
            took[name].append(seconds(words))
    rows = [(name, "s", round(statistics.median(times[1:]), 3)) for name, times in took.items()]
    cores = len(os.sched_getaffinity(0))
    machine = f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, median of {options.repeats}"
    report(machine, rows, options.out)


if __name__ == "__main__":
    main()
