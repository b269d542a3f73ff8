"""Times the distillation of reports.

CPU seconds and peak memory, each in a process of its own, on phantom reports with a few words exchanged, so that all
differ: TF-IDF, SVD and k-means; latent Dirichlet allocation; and the number of topics chosen by `topics: auto`. With 0
reports a row is left out. `--growth` also prints the exponent of time over a quarter, a half and all of the reports.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reports import reports
from benchmarks.rounds import exponent, parser, rows_of, start, write
from framework.topics.distill import distill
from plugins.distiller.faiss_kmeans import FaissKMeans
from plugins.distiller.lda import LDA
from plugins.tokenizer.words import Words

WORKS: dict[str, Callable[[], Any]] = {
    "k-means": lambda: FaissKMeans(segment=Words().segment, seed=1, topics=18),
    "lda": lambda: LDA(segment=Words().segment, seed=1, topics=18),
    "auto": lambda: FaissKMeans(segment=Words().segment, seed=1, topics="auto"),
}


def measured(name: str, count: int) -> tuple[float, float]:
    """CPU seconds, and the peak memory of the process in GiB."""
    texts = reports(count, 1)
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        distill(WORKS[name](), {"train": texts}, None, Path(folder), "benchmark")
    return time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parse = parser(__doc__)
    parse.add_argument("--reports", type=int, default=100_000)
    parse.add_argument("--lda", type=int, default=10_000)
    parse.add_argument("--auto", type=int, default=10_000)
    parse.add_argument("--growth", action="store_true")
    options = start(parse, quick={"reports": 300, "lda": 100, "auto": 100})
    rows: list[Any] = []
    growth: dict[str, float] = {}
    spawn = multiprocessing.get_context("spawn")
    for name, count in (("k-means", options.reports), ("lda", options.lda), ("auto", options.auto)):
        if not count or options.only not in name:
            continue
        sizes = [count // 4, count // 2, count] if options.growth else [count]
        with spawn.Pool(1, maxtasksperchild=1) as pool:
            took = {size: [pool.apply(measured, (name, size)) for _ in range(options.rounds)] for size in sizes}
        what = f"{name}, {count:,} reports"
        rows += rows_of(what, "s", {"ours": [seconds for seconds, _ in took[count]]})
        rows += rows_of(f"{what}, peak memory", "GiB", {"ours": [peak for _, peak in took[count]]})
        if options.growth:
            growth[name] = exponent({size: min(seconds for seconds, _ in each) for size, each in took.items()})
            print(f"{name}: exponent {growth[name]:.2f}", flush=True)
    write(rows, options, ("faiss-cpu", "numpy", "scipy", "scikit-learn"), growth=growth)


if __name__ == "__main__":
    main()
