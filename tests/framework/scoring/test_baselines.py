"""Baselines and oracles on exams small enough to know the answer."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from framework.data.image_cache import build_image_cache
from framework.data.loading import ExamSet
from framework.exam import Exam, Pair
from framework.scoring import baselines
from framework.scoring.baselines import Comparisons, rows_of, unseen_rows
from framework.scoring.constants import best_constants
from framework.scoring.scorer import Scorer
from framework.scoring.table import BASELINES
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


def test_each_baseline_and_oracle_gives_its_report(tmp_path: Path, scorer: Scorer) -> None:
    train = make(tmp_path, [(NONE, 100, 0)] * 3 + [(CYST, 10, 1), (MASS, 200, 2)], "train")
    val = make(tmp_path, [(NONE, 90, 0), (NONE, 90, 0), (CYST, 12, 1)], "val")
    test = make(tmp_path, [(CYST, 12, 1), (MASS + " large .", 190, 2), (NONE, 205, 0)], "test")
    found = Comparisons(train, val, scorer, "bleu_4", seed=1).of(test)
    assert found["fixed_report"].of("bleu_4") == found["fixed_report"].predictions == [NONE] * 3
    assert found["nearest_image"].predictions == [CYST, MASS, MASS]
    for name in ("topic_oracle", "retrieval_oracle"):
        assert found[name].of("bleu_4") == found[name].of("cider") == [CYST, MASS, NONE]
    assert found["rewording"].predictions[0] == CYST.upper()
    assert set(found["random_report"].predictions) <= {CYST, MASS, NONE}
    assert set(found["frequent_reports"].predictions) <= {CYST, MASS, NONE}
    assert [row[0] for row in unseen_rows(rows_of(test.exams, [NONE] * 3), train)] == ["test1"]


def test_each_score_has_its_own_best_constant_report(tmp_path: Path, scorer: Scorer) -> None:
    """CIDEr gives nothing for the words that every report has, BLEU counts them."""
    filler = "the glands are normal in size and in echo , and no enlarged node is seen ."
    findings = ["a cyst at one", "a mass at two", "a node at six", "a scar at ten"]
    texts = [f"{filler} {finding} ." for finding in findings]
    train = make(tmp_path, [(text, 10, 0) for text in [*texts, filler, CYST, CYST]], "train")
    val = make(tmp_path, [(text, 10, 0) for text in [*texts, *texts, CYST, CYST, CYST]], "val")
    found = Comparisons(train, val, scorer, "bleu_4", seed=1).of(val)["fixed_report"]
    assert found.constants["cider"].report == CYST != found.constants["bleu_4"].report
    assert found.constants["bleu_4"].tried == 6, "all distinct training reports"
    assert {name: found.of(name)[0] for name in ("bleu_4", "cider")} == {
        name: found.constants[name].report for name in ("bleu_4", "cider")
    }
    own = {name: predictions[0] for predictions, names in found.groups() for name in names or ()}
    assert own["cider"] == CYST


def test_the_fixed_report_is_the_best_scoring_and_not_the_most_frequent(scorer: Scorer) -> None:
    assert best_constants([CYST, CYST, CYST, MASS], [MASS, MASS, CYST], scorer)["bleu_4"].report == MASS


def test_a_metric_without_best_constants_is_called_on_a_shortlist(scorer: Scorer) -> None:
    class Words:
        names, by_words, higher_is_better = ("words",), True, True

        def __call__(self, pairs: list[Pair]) -> dict[str, float]:
            return {"words": float(sum(len(pair.prediction_words) for pair in pairs))}

    found = best_constants([CYST, MASS, NONE, NONE], [NONE], Scorer([Words()], scorer.tokenizer))
    assert found["words"].report == max((CYST, MASS, NONE), key=lambda text: len(text.split()))


def test_a_constant_with_a_score_of_nan_is_never_the_best(scorer: Scorer) -> None:
    class Words:
        names, by_words, higher_is_better = ("words",), True, False

        def __call__(self, pairs: list[Pair]) -> dict[str, float]:
            return {"words": 1.0 if pairs[0].prediction == MASS else math.nan}

    assert best_constants([CYST, MASS, NONE], [NONE], Scorer([Words()], scorer.tokenizer))["words"].report == MASS


def test_baselines_do_not_read_the_test_references(tmp_path: Path, scorer: Scorer) -> None:
    train, val = make(tmp_path, [(NONE, 100, 0), (CYST, 10, 1)], "train"), make(tmp_path, [(NONE, 90, 0)], "val")
    baselines = Comparisons(train, val, scorer, "bleu_4", seed=1)
    one, two = (baselines.of(make(tmp_path, [(text, 12, 1)], "t")) for text in (CYST, MASS))
    for name in BASELINES:
        assert one[name] == two[name]


def test_frequent_reports_are_drawn_by_the_frequency_of_their_classes(tmp_path: Path, scorer: Scorer) -> None:
    train = make(tmp_path, [(NONE, 9, 0)] * 60 + [(CYST, 9, 1)] * 30 + [(MASS, 9, 2)] * 10, "train")
    test = make(tmp_path, [(NONE, 9, 0)] * 400, "test")
    drawn = Counter(Comparisons(train, train, scorer, "bleu_4", seed=3).of(test)["frequent_reports"].predictions)
    assert drawn.keys() == {NONE, CYST, MASS}
    assert 200 < drawn[NONE] < 280 and 80 < drawn[CYST] < 160 and drawn[MASS] < 80


def test_the_nearest_reports_are_those_of_a_stable_order_of_all():
    """Copies and reports that are equally near keep the order of training."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(["a", "b", "c", "d"], size=3)) for _ in range(12)]
    training = [texts[n] for n in draw.integers(12, size=200)]
    vectors = TfidfVectorizer(analyzer=str.split)
    train_NW = vectors.fit_transform(training)
    references_MW = vectors.transform([*texts, "", "e"])
    products = (references_MW @ train_NW.T).toarray()
    expected = np.argsort(-products, axis=1, kind="stable")[:, : baselines.NEAREST]
    assert (baselines._nearest(references_MW, train_NW, training) == expected).all()
    few = baselines._nearest(references_MW, train_NW[:3], training[:3])
    assert (few == np.argsort(-products[:, :3], axis=1, kind="stable")).all()


def test_the_retrieval_oracle_never_holds_all_similarities():
    words, draw = [f"w{n}" for n in range(300)], np.random.default_rng(0)
    reports = [" ".join(draw.choice(words, size=12)) for _ in range(5000)]
    exams = [Exam(str(n), str(n), (), report) for n, report in enumerate(reports[:2000])]
    scorer = SimpleNamespace(tokenizer=SimpleNamespace(segment=str.split), metric_inputs=lambda rows: [])
    tracemalloc.start()
    try:
        found = baselines._retrieval_oracle(SimpleNamespace(exams=exams), reports[2000:] + reports[:2000], scorer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.predictions == reports[:2000], "each report is nearest to itself"
    assert peak < 2000 * 5000 * 8, "less than one number per pair"
