"""Runs benchmarks, each in a process of its own: `python -m benchmarks [NAME...] [--quick] [--device cuda]`.

Writes benchmarks/results/NAME.json, with `--device cuda` NAME-cuda.json; with `--quick` only if `--results` names a
folder, since those are no figures. Other options, such as `--rounds 3 --threads 1`, go to the benchmarks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.catalog import FOLDER, RESULTS, benchmarks


def main() -> int:
    known = benchmarks()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all, which are {', '.join(known)}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--results", type=Path, help="folder of the JSON files")
    options, passed_on = parser.parse_known_args()
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no benchmark {', '.join(unknown)}; known: {', '.join(known)}")
    names = options.names or [name for name, each in known.items() if options.device in each.devices]
    folder = options.results or (None if options.quick else RESULTS)
    failed = []
    for name in names:
        words = ["--quick"] * options.quick + ["--device", options.device] * (options.device != "cpu") + passed_on
        if folder:
            words += ["--out", str(known[name].result(options.device, folder.resolve()))]
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], cwd=FOLDER.parent).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
