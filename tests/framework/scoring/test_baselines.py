"""Baselines and oracles on exams small enough to know the answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from framework.data.image_cache import build_image_cache
from framework.data.loading import ExamSet
from framework.exam import Exam
from framework.scoring.baselines import baseline_rows, best_report, unseen_rows
from framework.scoring.scorer import Scorer
from plugins.metric.bleu import Bleu
from plugins.metric.cider import Cider
from plugins.tokenizer.words import Words

CYST = "an anechoic oval cyst is seen in the left breast ."
MASS = "an irregular hypoechoic mass is seen in the right breast ."
NONE = "no mass is seen in either breast ."


@dataclass(frozen=True)
class Grey:
    value: int
    name: str = "grey"

    def load(self) -> np.ndarray:
        return np.full((32, 32), self.value, np.uint8)


def make(folder: Path, rows: list[tuple[str, int, int]], split: str) -> ExamSet:
    exams = [
        Exam(f"{split}{i}", f"{split}{i}", (Grey(value),), text, rewording=text.upper())
        for i, (text, value, _) in enumerate(rows)
    ]
    cache, _ = build_image_cache(exams, source_key=split, size=32, channels=1, folder=folder, on_broken="stop")
    return ExamSet(exams, cache, [[] for _ in exams], np.array([topic for _, _, topic in rows]))


@pytest.fixture
def scorer() -> Scorer:
    tokenizer = Words()
    tokenizer.fit([CYST, MASS, NONE])
    return Scorer([Bleu(), Cider()], tokenizer)


def test_each_baseline_and_oracle_writes_the_report_that_it_should(tmp_path: Path, scorer: Scorer) -> None:
    train = make(tmp_path, [(NONE, 100, 0)] * 3 + [(CYST, 10, 1), (MASS, 200, 2)], "train")
    val = make(tmp_path, [(NONE, 90, 0), (NONE, 90, 0), (CYST, 12, 1)], "val")
    test = make(tmp_path, [(CYST, 12, 1), (MASS + " large .", 190, 2), (NONE, 205, 0)], "test")
    rows = baseline_rows(test, train, val, scorer, "bleu_4", seed=1)
    written = {name: [prediction for _, prediction, _ in each] for name, each in rows.items()}
    assert written["fixed_report"] == [NONE] * 3
    assert written["nearest_image"] == [CYST, MASS, MASS]
    assert written["topic_oracle"] == written["retrieval_oracle"] == [CYST, MASS, NONE]
    assert written["rewording"][0] == CYST.upper()
    assert set(written["random_report"]) <= {CYST, MASS, NONE}
    assert [row[0] for row in unseen_rows(rows["fixed_report"], train)] == ["test1"]


def test_the_fixed_report_is_the_one_that_scores_best_not_the_most_frequent(scorer: Scorer) -> None:
    assert best_report([CYST, CYST, CYST, MASS], [MASS, MASS, CYST], scorer, "bleu_4") == MASS


def test_baselines_do_not_read_the_test_references(tmp_path: Path, scorer: Scorer) -> None:
    train, val = make(tmp_path, [(NONE, 100, 0), (CYST, 10, 1)], "train"), make(tmp_path, [(NONE, 90, 0)], "val")
    one = baseline_rows(make(tmp_path, [(CYST, 12, 1)], "t"), train, val, scorer, "bleu_4", 1)
    two = baseline_rows(make(tmp_path, [(MASS, 12, 1)], "t"), train, val, scorer, "bleu_4", 1)
    for name in ("fixed_report", "random_report", "nearest_image"):
        assert [row[1] for row in one[name]] == [row[1] for row in two[name]]
