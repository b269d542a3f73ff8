"""Times baselines and oracles.

CPU seconds with reports of phantom exams, 18 topics, BLEU, ROUGE-L, CIDEr and findings F1; a tenth of the training
exams validate. `--growth` also prints the exponents with which time grows in training and in test exams, fitted to a
quarter, a half and all of each.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from benchmarks.rounds import exponent, forget, parser, rows_of, start, write
from framework.data.image_cache import ImageCache
from framework.data.loading import ExamSet
from framework.exam import Exam
from framework.scoring.baselines import Comparisons
from framework.scoring.scorer import Scorer
from framework.text.lsa import lsa_positions
from framework.topics.kmeans import KMeans
from plugins.dataset.phantom import Phantom
from plugins.metric.bleu import Bleu
from plugins.metric.cider import Cider
from plugins.metric.findings_f1 import FindingsF1
from plugins.metric.rouge_l import RougeL
from plugins.tokenizer.words import Words

TOPICS = 18


@dataclass
class Noise:
    """Images without a file."""

    def images(self, exam_id: str) -> np.ndarray:
        return np.random.default_rng(abs(hash(exam_id)) % 2**32).integers(0, 256, (2, 1, 64, 64), dtype=np.uint8)


def seconds(train: int, test: int) -> float:
    exams = [list(Phantom(exams=count, seed=seed).splits()["train"]) for seed, count in ((1, train), (2, test))]
    sets = [_exam_set(own) for own in (exams[0], exams[0][: max(1, train // 10)], exams[1])]
    words = Words()
    words.fit([exam.report for exam in exams[0]])
    scorer = Scorer([Bleu(), RougeL(), Cider(), FindingsF1()], words)
    forget()
    begin = time.process_time()
    Comparisons(sets[0], sets[1], scorer, "bleu_4", seed=1).of(sets[2])
    return time.process_time() - begin


def _exam_set(exams: list[Exam]) -> ExamSet:
    positions = lsa_positions([exam.report.split() for exam in exams], 0)
    topics = KMeans(1, 10).labels(positions, min(TOPICS, len(np.unique(positions, axis=0))), 0)
    return ExamSet(exams, cast(ImageCache, Noise()), [[] for _ in exams], topics)


def main() -> None:
    parse = parser(__doc__)
    parse.add_argument("--train", type=int, default=10_000)
    parse.add_argument("--test", type=int, default=6_000)
    parse.add_argument("--growth", action="store_true")
    options = start(parse, quick={"train": 200, "test": 100})
    took = [seconds(options.train, options.test) for _ in range(options.rounds)]
    what = f"{options.train:,} training x {options.test:,} test exams"
    rows: list[Any] = rows_of(what, "s", {"ours": took})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows += rows_of(f"{what}, peak memory", "GiB", {"ours": [peak]})
    growth = {}
    if options.growth:
        sizes = (4, 2, 1)
        growth["train"] = exponent({options.train // n: seconds(options.train // n, options.test) for n in sizes})
        growth["test"] = exponent({options.test // n: seconds(options.train, options.test // n) for n in sizes})
        print("   ".join(f"exponent over {name} exams {value:.2f}" for name, value in growth.items()))
    write(rows, options, ("numpy", "scipy", "scikit-learn"), growth=growth)


if __name__ == "__main__":
    main()
