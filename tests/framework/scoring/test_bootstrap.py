"""Intervals of scores: against bootstraps made by hand and by scipy, and a simulation of which the truth is known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from framework.exam import Pair
from framework.scoring import bootstrap as module
from framework.scoring.bootstrap import PatientStatistics, draws, intervals, percentile_interval
from framework.scoring.scorer import Scorer
from framework.scoring.table import legend, score_table
from plugins.metric.bleu import Bleu
from plugins.metric.findings_f1 import FindingsF1
from plugins.metric.rouge_l import RougeL
from plugins.tokenizer.words import Words

REPORTS = [
    "an anechoic oval cyst is seen in the left breast .",
    "an irregular hypoechoic mass is seen in the right breast .",
    "no mass is seen in either breast .",
    "the left breast shows a round isoechoic mass with calcification .",
]


class Right:
    """Fraction of reports that equal their reference."""

    names = ("right",)
    by_words = True
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        return {"right": float(self.compute(self.per_exam_stats(pairs).sum(0))["right"])}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        return np.array([[pair.prediction == pair.reference, 1] for pair in pairs], dtype=float)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"right": sums[..., 0] / sums[..., 1]}


class Called:
    """The same without per-exam statistics."""

    names = ("called",)
    by_words = True
    higher_is_better = True
    fails = False
    calls = 0

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        self.calls += 1
        if self.fails and len({pair.reference for pair in pairs}) < len(REPORTS):
            raise ZeroDivisionError("no such report")
        return {"called": sum(pair.prediction == pair.reference for pair in pairs) / len(pairs)}


class Sometimes(Right):
    """Infinite if all reports are right."""

    names = ("sometimes",)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        share = sums[..., 0] / sums[..., 1]
        return {"sometimes": np.where(share == 1, np.inf, share)}

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        return {"sometimes": float(self.compute(self.per_exam_stats(pairs).sum(0))["sometimes"])}


def scorer(*metrics: object, weights: dict[str, float] | None = None) -> Scorer:
    return Scorer(metrics, SimpleNamespace(segment=str.split, language="en", segmentation="words"), weights)


def rows_of(right: Sequence[bool]) -> list[tuple[str, str, str]]:
    return [
        (str(number), REPORTS[number % 4] if good else REPORTS[(number + 1) % 4], REPORTS[number % 4])
        for number, good in enumerate(right)
    ]


def ends(
    which: Scorer,
    rows: list[tuple[str, str, str]],
    patients: dict[str, str],
    bootstrap_samples: int = 200,
    seed: int = 1,
):
    return with_reasons(which, rows, patients, bootstrap_samples, seed)[:2]


def with_reasons(
    which: Scorer,
    rows: list[tuple[str, str, str]],
    patients: dict[str, str],
    bootstrap_samples: int = 200,
    seed: int = 1,
):
    """Low and high ends, and the reasons of scores without them."""
    known, seconds = which.timed_score(rows)
    return intervals(which, rows, patients, known, seconds, seed=seed, bootstrap_samples=bootstrap_samples)


def alone(rows: list[tuple[str, str, str]]) -> dict[str, str]:
    return {exam_id: exam_id for exam_id, _, _ in rows}


def test_resamples_and_intervals_equal_scipy() -> None:
    values_KN = np.random.default_rng(0).normal(size=(2, 1500))
    parts = [values_KN @ counts_RN.T / counts_RN.sum(1) for counts_RN in draws(1500, seed=5, bootstrap_samples=800)]
    drawn = np.concatenate(parts, axis=1)
    found = stats.bootstrap(
        (np.arange(1500),), lambda drawn_RN, axis: values_KN[:, drawn_RN].mean(-1), n_resamples=800, batch=666,
        vectorized=True, method="percentile", random_state=np.random.default_rng(5),
    )  # fmt: skip
    assert drawn == pytest.approx(found.bootstrap_distribution, abs=1e-12)
    low, high = percentile_interval(drawn)
    assert low == pytest.approx(found.confidence_interval.low) and high == pytest.approx(found.confidence_interval.high)


def test_an_interval_equals_a_bootstrap_by_hand() -> None:
    rows = rows_of(np.random.default_rng(3).random(14) < 0.6)
    patients = {exam_id: f"patient {int(exam_id) // 3}" for exam_id, _, _ in rows}  # 5 patients, of 3, 3, 3, 3 and 2
    which = scorer(Bleu(), RougeL(), FindingsF1())
    low, high = ends(which, rows, patients, bootstrap_samples=60, seed=7)
    by_hand: dict[str, list[float]] = {}
    for counts_P in np.concatenate(list(draws(5, seed=7, bootstrap_samples=60))):
        drawn = [
            (f"{exam_id} {time}", prediction, reference)
            for number in range(5)
            for time in range(int(counts_P[number]))
            for exam_id, prediction, reference in rows
            if patients[exam_id] == f"patient {number}"
        ]
        for name, value in which.score(drawn).items():
            by_hand.setdefault(name, []).append(value)
    for name in ("bleu_1", "bleu_4", "rouge_l", "findings_f1", "findings_recall"):
        expected = np.quantile(by_hand[name], [0.025, 0.975], method="linear")
        assert (low[name], high[name]) == pytest.approx(tuple(expected), abs=3e-6)
        assert low[name] < high[name]
    assert low.keys() == high.keys() == which.score(rows).keys(), "parts have intervals too"


def test_95_percent_intervals_cover_the_true_value() -> None:
    random, truth, held, splits = np.random.default_rng(11), 0.7, 0, 150
    which = scorer(Right())
    for _ in range(splits):
        rows = rows_of(random.random(80) < truth)
        low, high = ends(which, rows, alone(rows), bootstrap_samples=200, seed=int(random.integers(1000)))
        held += low["right"] <= truth <= high["right"]
    assert 0.88 <= held / splits <= 0.99  # 95 % and its own noise of 1.8 % a deviation


def test_correlated_exams_of_a_patient_widen_the_interval() -> None:
    good = np.random.default_rng(2).random(60) < 0.5
    rows = rows_of(np.repeat(good, 4))
    together = {exam_id: str(int(exam_id) // 4) for exam_id, _, _ in rows}
    wide, narrow = (ends(scorer(Right()), rows, patients, 1000) for patients in (together, alone(rows)))
    ratio = (wide[1]["right"] - wide[0]["right"]) / (narrow[1]["right"] - narrow[0]["right"])
    assert ratio == pytest.approx(2, abs=0.25), "the root of 4 exams of a patient"


def test_a_metric_without_per_exam_statistics_is_called_on_the_same_resamples() -> None:
    rows = rows_of(np.random.default_rng(4).random(20) < 0.5)
    low, high = ends(scorer(Right(), Called()), rows, {exam_id: exam_id[-1] for exam_id, _, _ in rows})
    assert low["called"] == low["right"] < high["right"] == high["called"]


def test_a_slow_metric_has_no_interval_and_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALLS_S", 0.0)
    metric = Called()
    rows, which = rows_of([True, False, True]), scorer(Right(), metric)
    low, high, without = with_reasons(which, rows, alone(rows))
    assert metric.calls == 1, "it is not called again to be timed"
    scores = {"model": {"exams": 3, **which.score(rows)}, "model_low": low, "model_high": high}
    scores["model_without_interval"] = without
    assert set(low) == set(high) == {"right"}
    assert set(without) == {"called"} and re.fullmatch(r"200 calls of its metric would take \d+ s", without["called"])
    header, table = score_table(scores)
    assert dict(zip(header, table[1])) == {
        "reports from": "its 95 % interval", "exams": "", "different": "", "right": "[0.000, 1.000]", "called": "-",
    }  # fmt: skip
    assert legend(scores).endswith(f"; no interval of called: {without['called']}")
    assert not legend({"model": scores["model"]})


def test_a_metric_that_fails_on_a_resample_has_no_interval_and_a_notice(capsys: pytest.CaptureFixture[str]) -> None:
    metric = Called()
    metric.fails = True
    rows = rows_of([True, False, True, True])
    which = scorer(Right(), metric, Sometimes(), weights={"right": 1.0, "called": 1.0})
    low, high, without = with_reasons(which, rows, alone(rows))
    assert set(low) == {"right"}
    assert without["called"].startswith("its metric fails on a resample: ZeroDivisionError")
    assert without["sometimes"] == "not finite on some resamples"
    assert without["monitor"] == "a score in its sum has none" and "right" not in without
    scores = {"model": {"exams": 4, **which.score(rows)}, "model_low": low, "model_high": high}
    scores["model_without_interval"] = without
    assert "too long" not in legend(scores) and "of sometimes: not finite on some resamples" in legend(scores)
    assert "no interval of called: its metric fails on a resample: ZeroDivisionError" in capsys.readouterr().out


def test_one_patient_and_no_resamples_give_no_intervals() -> None:
    rows = rows_of([True, False, True])
    assert ends(scorer(Right()), rows, dict.fromkeys("012", "the one")) == ({}, {})
    assert ends(scorer(Right()), rows, alone(rows), bootstrap_samples=0) == ({}, {})


def test_a_weighted_sum_has_an_interval() -> None:
    rows = rows_of(np.random.default_rng(5).random(30) < 0.5)
    which = scorer(Right(), Bleu(), weights={"right": 2.0})
    low, high = ends(which, rows, alone(rows))
    assert which.score(rows)["monitor"] == pytest.approx(2 * which.score(rows)["right"], abs=2e-6)
    assert (low["monitor"], high["monitor"]) == pytest.approx((2 * low["right"], 2 * high["right"]), abs=3e-6)


def test_character_scores_have_intervals() -> None:
    texts = ["左乳见一低回声结节，边界清。", "双乳未见明显肿块。", "右乳见一囊性结节。"]
    tokenizer = Words()
    tokenizer.fit(texts)
    which = Scorer([Bleu()], tokenizer)
    rows = [(str(n), texts[n % 2], texts[n % 3]) for n in range(9)]
    low, high = ends(which, rows, alone(rows))
    assert low["bleu_4_char"] < which.score(rows)["bleu_4_char"] < high["bleu_4_char"] != high["bleu_4"]


def test_a_paired_difference_is_drawn_on_the_same_patients() -> None:
    """Each patient's prediction is better by the same amount, so the difference does not vary, though scores do."""
    tokenizer = Words()
    tokenizer.fit(["a b c d e"])
    scorer = Scorer([RougeL()], tokenizer)
    references = ["a b c d", "a b d e", "c d e a", "e d c b", "b c a e", "a c e d"]
    patients = {str(number): str(number // 2) for number in range(6)}
    right = [(str(number), text, text) for number, text in enumerate(references)]
    half = [(exam_id, " ".join(text.split()[:2]), text) for exam_id, text, _ in right]
    statistics = PatientStatistics(scorer, list(patients), patients)
    statistics.add(right)
    statistics.add(half, {"rouge_l"})
    one, two = ([prediction for _, prediction, _ in rows] for rows in (right, half))
    difference = scorer.score(right)["rouge_l"] - scorer.score(half)["rouge_l"]
    ends = statistics.difference("rouge_l", one, two, seed=1, bootstrap_samples=100)
    assert ends == pytest.approx((difference, difference), abs=1e-5)
    assert statistics.difference("rouge_l", one, two, seed=1, bootstrap_samples=0) is None
