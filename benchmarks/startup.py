"""Start-up of the quick verbs beside Python that imports torch, which they avoid, and beside Python that does nothing.

Seconds from the start of a process to its end.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

from benchmarks.rounds import ROOT, alternate, parser, rows_of, start, write

PYTHON = {"python, import torch": ["-c", "import torch"], "python, doing nothing": ["-c", "pass"]}
VERBS = {
    "ls": ["launch.py", "ls"],
    "describe encoder/resnet": ["launch.py", "describe", "encoder/resnet"],
    "validate recipes/breast.yaml": ["launch.py", "validate", "recipes/breast.yaml"],
    "explain breast train": ["launch.py", "explain", "breast", "train"],
    "diff breast smoke": ["launch.py", "diff", "breast", "smoke"],
    "schema": ["launch.py", "schema"],
}


def run(words: list[str]) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    options = start(parser(__doc__), quick={"only": "ls"})
    verbs = {verb: words for verb, words in VERBS.items() if options.only in verb}
    seconds = alternate(
        {name: functools.partial(run, words) for name, words in (verbs | PYTHON).items()}, options.rounds
    )
    rows: list[Any] = []
    for verb in verbs:
        rows += rows_of(verb, "s", {"ours": seconds[verb], **{name: seconds[name] for name in PYTHON}})
    write(rows, options, ("typer", "pydantic"))


if __name__ == "__main__":
    main()
