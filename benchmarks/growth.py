"""How time grows with exams, tokens, batch, topics and processes.

The exponent is the slope of log time over log size at the three largest sizes, from the fastest round of each: 1 is
linear, 2 quadratic. Over exams an exponent above 1.15 is marked. All reports differ. Up to a million exams: `--exams
16000 64000 256000 1000000 --only exams`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# isort: split
import numpy as np

from benchmarks.reports import reports
from benchmarks.rounds import alternate, exponent, parser, rows_of, start, write
from framework.data.check import check
from framework.data.loading import BatchPlan
from framework.exam import BOS, EOS, Exam, Features, Pair
from framework.models.generation import generate
from framework.text.lsa import lsa_positions
from framework.topics.kmeans import KMeans
from plugins.decoder.transformer import Transformer
from plugins.metric.bleu import Bleu
from plugins.metric.cider import Cider
from plugins.metric.findings_f1 import FindingsF1
from plugins.metric.rouge_l import RougeL
from plugins.tokenizer.words import Words

DEVICES = ("cpu", "cuda")
LIMIT = 1.15  # of the exponent over exams
DIMENSIONS, WIDTH, PATCHES, WORDS = 64, 64, 49, 500
QUICK = {
    "exams": [50, 100, 200],
    "tokens": [8, 16, 32],
    "batch": [2, 4, 8],
    "topics": [2, 4, 8],
    "processes": [1, 2, 4],
    "fixed_exams": 200,
}


@dataclass(frozen=True)
class Noise:
    """A view of random pixels, as cheap as a view can be."""

    seed: int
    name: str = "left"

    def load(self) -> np.ndarray:
        return np.random.default_rng(self.seed).integers(0, 255, (32, 32), dtype=np.uint8)


class Source:
    """Exams of two views; one in ten is of val, and one of test."""

    cache_key = "growth"

    def __init__(self, texts: Sequence[str]) -> None:
        exams = [Exam(str(n), str(n), (Noise(2 * n), Noise(2 * n + 1, "right")), t) for n, t in enumerate(texts)]
        tenth = len(exams) // 10
        self.exams = {"train": exams[2 * tenth :], "val": exams[:tenth], "test": exams[tenth : 2 * tenth]}

    def splits(self) -> dict[str, Sequence[Exam]]:
        return dict(self.exams)


Work = Callable[[], object]


class Growth:
    """Times works of several sizes in turn and fits their exponents."""

    def __init__(self, rounds: int, only: str) -> None:
        self.rounds, self.only = rounds, only
        self.rows: list[Any] = []
        self.fits: list[Any] = []

    def measure(self, what: str, over: str, sizes: Sequence[int], work: Callable[[int], Work]) -> None:
        """Measures `work(size)` of each size. What `work` does before it returns is not timed."""
        if self.only not in f"{what} over {over}":
            return
        seconds = alternate({str(size): work(size) for size in sizes}, self.rounds)
        for size, each in zip(sizes, seconds.values(), strict=True):
            (row,) = rows_of(f"{what}, {size:,} {over}", "s", {"ours": each})
            self.rows.append(row)
        fastest = [min(each) for each in seconds.values()]
        slope = exponent(dict(list(zip(sizes, fastest, strict=True))[-3:]))
        above = over == "exams" and slope > LIMIT
        self.fits.append(
            {"what": what, "over": over, "sizes": list(sizes), "seconds": fastest, "exponent": slope, "above": above}
        )
        print(f"{what} over {over}: exponent {slope:.2f}{', above ' + str(LIMIT) if above else ''}", flush=True)


def main() -> None:
    parse = parser(__doc__, DEVICES)
    parse.add_argument("--exams", type=int, nargs="+", default=[1000, 4000, 16_000])
    parse.add_argument("--fixed-exams", type=int, default=4000, help="where something else grows")
    parse.add_argument("--tokens", type=int, nargs="+", default=[32, 64, 128, 256])
    parse.add_argument("--batch", type=int, nargs="+", default=[4, 16, 64])
    parse.add_argument("--topics", type=int, nargs="+", default=[4, 16, 64])
    parse.add_argument("--processes", type=int, nargs="+", default=[1, 8, 64])
    options = start(parse, quick=QUICK)
    growth = Growth(options.rounds, options.only)
    over_exams(growth, options.exams)
    over_tokens_and_batch(growth, options.tokens, options.batch, options.device)
    points = points_of(options.fixed_exams)
    growth.measure(
        "k-means", "topics", options.topics, lambda topics: lambda: KMeans(2, 20).centroids(points, topics, 1)
    )
    exams = 10 * options.fixed_exams
    growth.measure(
        "batches of an epoch",
        "processes",
        options.processes,
        lambda processes: lambda: BatchPlan.plan(4 * processes, None, 0, processes).epoch(exams, seed=1, epoch=2),
    )
    write(growth.rows, options, ("numpy", "scipy", "scikit-learn"), fits=growth.fits)


def over_exams(growth: Growth, sizes: Sequence[int]) -> None:
    texts, other = reports(max(sizes), 1), reports(max(sizes), 2)
    segment = Words().segment
    cut, other_cut = ([tuple(segment(text)) for text in each] for each in (texts, other))
    pairs = [Pair(str(n), *each) for n, each in enumerate(zip(other, texts, other_cut, cut, strict=True))]
    works: Mapping[str, Callable[[int], Work]] = {
        "tokenizer fit": lambda n: lambda: Words().fit(texts[:n]),
        "segmentation": lambda n: lambda: [segment(text) for text in texts[:n]],
        "BLEU": lambda n: lambda: Bleu()(pairs[:n]),
        "ROUGE-L": lambda n: lambda: RougeL()(pairs[:n]),
        "CIDEr": lambda n: lambda: Cider()(pairs[:n]),
        "findings F1": lambda n: lambda: FindingsF1()(pairs[:n]),
        "report space (LSA)": lambda n: lambda: lsa_positions(cut[:n], seed=1),
        "k-means": lambda n: functools.partial(KMeans(2, 20).centroids, points_of(n), 18, 1),
        "batches of an epoch": lambda n: lambda: BatchPlan.plan(32, None, 0, 1).epoch(n, seed=1, epoch=2),
        "data check": lambda n: functools.partial(check, Source(texts[:n])),
    }
    for what, work in works.items():
        growth.measure(what, "exams", sizes, work)


def over_tokens_and_batch(growth: Growth, tokens: Sequence[int], batches: Sequence[int], device: str) -> None:
    """A transformer of one layer, without the end of a report. What does not grow is the middle size."""
    longest, batch = tokens[len(tokens) // 2], batches[len(batches) // 2]
    torch.manual_seed(0)
    decoder = Transformer(vocabulary_size=WORDS, feature_width=WIDTH, max_length=max(tokens), layers=1, width=WIDTH)
    decoder.to(device)
    with torch.no_grad():
        decoder.lm_head.bias[EOS] = -1e9

    def greedy(batch: int, longest: int) -> Work:
        features = features_of(batch, device)
        return lambda: generate(decoder.eval(), features, max_length=longest, num_beams=1)

    def step(batch: int, longest: int) -> Work:
        features, ids_BT = features_of(batch, device), torch.full((batch, longest), BOS, device=device)
        return lambda: decoder.train()(features, ids_BT).sum().backward()

    def texts(length: int) -> list[list[str]]:
        draw = np.random.default_rng(0)
        return [[f"w{word}" for word in draw.integers(WORDS, size=length)] for _ in range(200)]

    def rouge(length: int) -> Work:
        cut = [tuple(words) for words in texts(length)]
        pairs = [Pair(str(n), "", "", own, other) for n, (own, other) in enumerate(zip(cut, reversed(cut)))]
        return lambda: RougeL()(pairs)

    def segmentation(length: int) -> Work:
        joined = [" ".join(words) for words in texts(length)]
        return lambda: [Words().segment(text) for text in joined]

    growth.measure("greedy generation", "tokens", tokens, lambda size: greedy(batch, size))
    growth.measure("decoder, forward + backward", "tokens", tokens, lambda size: step(batch, size))
    growth.measure("ROUGE-L of 200 pairs", "tokens", tokens, rouge)
    growth.measure("segmentation of 200 reports", "tokens", tokens, segmentation)
    growth.measure("greedy generation", "batch", batches, lambda size: greedy(size, longest))
    growth.measure("decoder, forward + backward", "batch", batches, lambda size: step(size, longest))


def features_of(batch: int, device: str) -> Features:
    patches = torch.randn(batch, PATCHES, WIDTH, device=device)
    return Features(patches, torch.ones(batch, PATCHES, dtype=torch.bool, device=device), patches.mean(1))


def points_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, DIMENSIONS)).astype(np.float32)


if __name__ == "__main__":
    main()
