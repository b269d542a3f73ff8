"""Requests to `serve` from clients that each wait for their report, beside one call of the model per request.

The server and its clients are processes of their own and share the cores. Every request is an exam of two views, sent
over HTTP, decoded, and answered with words and heat. "One by one" is the server with batches of one exam, so the ratio
is what batching brings. p95 is the time below which 95 % of the requests are answered.
"""

from __future__ import annotations

import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.rounds import ROOT, parser, rows_of, start, write
from framework.build import build_dataset, run_recipe

QUICK = {"recipe": "smoke", "requests": 16, "epochs": 1}
VIEWS = 2


@contextmanager
def server(run: Path, threads: int, together: bool) -> Iterator[str]:
    """The address of a server of the run.

    Args:
        together: whether requests that wait are batched.
    """
    command = [sys.executable, "-m", "benchmarks.serving", "--serve", str(run)] + ["--one-by-one"] * (not together)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = next(filter(None, (re.match(r"open +(\S+)", line) for line in process.stdout)), None)
        assert found is not None, "the server did not start"
        yield found[1]
    finally:
        process.terminate()
        process.wait()


def serve(run: Path, together: bool) -> None:
    from framework.evaluation.predict import Predictor
    from framework.serve.command import serve_runs

    if not together:
        load = Predictor.__init__

        def with_batches_of_one(self: Predictor, *words: Any) -> None:
            load(self, *words)
            self.recipe.evaluate.__dict__["batch_size"] = 1

        Predictor.__init__ = with_batches_of_one  # type: ignore[method-assign]
    serve_runs([run], "127.0.0.1", 0, 64, None)


def seconds_of(address: str, exams: list[list[bytes]], clients: int) -> tuple[list[float], float]:
    """The seconds of each request, and of all of them together."""

    def one(views: list[bytes]) -> float:
        began = time.perf_counter()
        files = [("images", ("view.png", view)) for view in views]
        httpx.post(f"{address}/api/report", files=files, timeout=600).raise_for_status()
        return time.perf_counter() - began

    with ThreadPoolExecutor(clients) as threads:
        began = time.perf_counter()
        return list(threads.map(one, exams)), time.perf_counter() - began


def trained(recipe: str, epochs: int, folder: Path) -> Path:
    words = [f"train.epochs={epochs}", f"run.root={folder}", "run.name=served", f"data.cache_dir={folder / 'cache'}"]
    subprocess.run([sys.executable, "launch.py", recipe, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / recipe / "served"


def pngs(run: Path, count: int) -> list[list[bytes]]:
    """Exams of the run's test split as files, repeated up to `count`."""
    exams = build_dataset(run_recipe(run)).splits()["test"]
    found = []
    for number in range(count):
        views = exams[number % len(exams)].views
        files = []
        for view in (views * VIEWS)[:VIEWS]:
            buffer = io.BytesIO()
            Image.fromarray(view.load()).save(buffer, "png")
            files.append(buffer.getvalue())
        found.append(files)
    return found


def main() -> None:
    parse = parser(__doc__)
    parse.add_argument("--recipe", default="breast", help="that is trained first, unless there is --run")
    parse.add_argument("--epochs", type=int, default=2, help="of the training; speed hardly depends on it")
    parse.add_argument("--run", type=Path, help="a trained run")
    parse.add_argument("--requests", type=int, default=64)
    parse.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parse.add_argument("--serve", type=Path, help="(serves this run)")
    parse.add_argument("--one-by-one", action="store_true", help="(without batches)")
    options = start(parse, quick=QUICK)
    if options.serve is not None:
        serve(options.serve, not options.one_by_one)
        return
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        run = (options.run or trained(options.recipe, options.epochs, Path(folder))).resolve()
        exams = pngs(run, options.requests)
        names = {"ours": True, "one by one": False}
        with server(run, options.threads, True) as ours, server(run, options.threads, False) as other:
            addresses = dict(zip(names, (ours, other)))
            for clients in options.clients:
                rates: dict[str, list[float]] = {name: [] for name in names}
                tails: dict[str, list[float]] = {name: [] for name in names}
                for name in names:
                    seconds_of(addresses[name], exams[:clients], clients)
                for _ in range(options.rounds):
                    for name in names:
                        seconds, total = seconds_of(addresses[name], exams, clients)
                        rates[name].append(len(exams) / total)
                        tails[name].append(statistics.quantiles(seconds, n=20, method="inclusive")[-1])
                rows += rows_of(f"clients {clients}", "requests/s", rates)
                rows += rows_of(f"clients {clients}, p95", "s", tails)
    write(rows, options, ("fastapi", "uvicorn"))


if __name__ == "__main__":
    main()
