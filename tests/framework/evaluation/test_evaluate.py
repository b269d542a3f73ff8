"""Which process generates the reports of which exams, and how often a metric reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from framework.evaluation import evaluate as evaluation
from framework.evaluation.evaluate import evaluate_split, shard_indices
from framework.exam import Pair
from framework.scoring.baselines import BASELINES, Comparison
from framework.scoring.dependencies import LastResult
from framework.scoring.scorer import Scorer
from framework.scoring.table import CONSTANTS, HIGH, LOW, VARIETY, VERSUS


class Slow:
    """Length over that of the reference, by a model that is slow: it counts how often it reads a report."""

    names = ("slow",)
    by_words = False
    higher_is_better = True

    def __init__(self) -> None:
        self.last, self.reads = LastResult(), Counter[str]()

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        return {name: float(value) for name, value in self.compute(self.per_exam_stats(pairs).sum(0)).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        return self.last.get(pairs, lambda: self.read(pairs))

    def read(self, pairs: Sequence[Pair]) -> np.ndarray:
        self.reads.update(pair.prediction for pair in pairs)
        return np.array([(len(pair.prediction), len(pair.reference)) for pair in pairs], dtype=float)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"slow": sums[..., 0] / sums[..., 1]}


def test_a_metrics_model_reads_the_reports_of_a_split_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exams = SimpleNamespace(
        exams=[SimpleNamespace(id=str(number), patient=str(number), report="x" * 4) for number in range(6)]
    )
    rows = [(exam.id, "m" * (number + 1), exam.report) for number, exam in enumerate(exams.exams)]
    names = (*BASELINES, "rewording")
    monkeypatch.setattr(evaluation, "generate_reports", lambda *_, **keys: rows)
    monkeypatch.setattr(evaluation, "comparisons", lambda *_: {name: Comparison([name] * 6) for name in names})
    metric = Slow()
    tokenizer = SimpleNamespace(segment=str.split, language="en", segmentation="words")
    train = SimpleNamespace(exams=[SimpleNamespace(report="x" * 4)])
    parts = SimpleNamespace(
        exams={"train": train, "val": train, "test": exams}, tokenizer=tokenizer, scorer=Scorer([metric], tokenizer)
    )
    recipe = SimpleNamespace(
        train=SimpleNamespace(seed=1), evaluate=SimpleNamespace(num_beams=1, bootstrap_samples=50, monitored="slow")
    )
    read_before: list[int] = []
    scores = evaluate_split(
        SimpleNamespace(num_processes=1),
        None,
        parts,
        recipe,
        "test",
        tmp_path,
        before_scoring=lambda: read_before.append(metric.reads.total()),
    )
    assert read_before == [0]
    assert list(scores) == ["model", LOW, HIGH, *names, CONSTANTS, VARIETY, VERSUS]
    assert scores[LOW]["slow"] < scores["model"]["slow"] == 21 / 24 < scores[HIGH]["slow"]
    assert {metric.reads[prediction] for _, prediction, _ in rows} == {1}
    assert {metric.reads[name] for name in names} == {6}
    versus = scores[VERSUS]["slow"]
    assert versus["baseline"] in BASELINES and versus["low"] <= versus["difference"] <= versus["high"] < 0
    assert versus["better"] is versus["better_than_fixed"] is False


@pytest.mark.parametrize("processes", range(1, 10))
def test_each_exam_is_in_one_shard_and_shards_differ_by_at_most_one_exam(processes: int) -> None:
    for exams in range(41):
        shards = shard_indices(exams, processes)
        assert len(shards) == processes
        assert sorted(number for shard in shards for number in shard) == list(range(exams))
        lengths = [len(shard) for shard in shards]
        assert max(lengths) - min(lengths) <= 1
        assert lengths[0] == max(lengths), "the first shard sets the number of rounds"
