"""The best constant report of a metric is the one that calls on every candidate would choose."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from framework.exam import Pair
from plugins.dataset.phantom import Phantom
from plugins.metric.bleu import Bleu
from plugins.metric.cider import Cider
from plugins.metric.findings_f1 import FindingsF1
from plugins.metric.rouge_l import RougeL
from plugins.tokenizer.words import Words


def phantom_reports(count: int, language: str) -> list[str]:
    source = Phantom(organ="breast", exams=count, val_exams=1, test_exams=1, seed=5, language=language)
    return [exam.report for exam in source.splits()["train"]]


def noise(count: int, seed: int) -> list[str]:
    """Texts of few words, so that repeated n-grams and ties are common."""
    draw = random.Random(seed)
    return [" ".join(draw.choices("abc", k=draw.randint(0, 12))) for _ in range(count)]


@pytest.mark.parametrize("metric", [Bleu(), Cider(), RougeL(), FindingsF1()], ids=lambda metric: type(metric).__name__)
@pytest.mark.parametrize("texts", ["noise-1", "noise-2", "en", "zh"])
def test_the_best_constant_report_is_that_of_a_call_on_every_candidate(metric, texts: str, tmp_path: Path) -> None:
    reports = noise(120, int(texts[-1])) if texts.startswith("noise") else phantom_reports(120, texts)
    candidates = sorted({report for report in reports[:70] if report})
    references = [report for report in reports[50:] if report]
    segment = str.split if texts.startswith("noise") else Words().segment
    cut = {text: tuple(segment(text)) for text in {*candidates, *references}}
    pairs = [Pair(str(number), "", text, (), cut[text]) for number, text in enumerate(references)]
    best = metric.best_constants(candidates, [cut[text] for text in candidates], pairs)

    def score(candidate: str, name: str) -> float:
        rows = [Pair(p.exam_id, candidate, p.reference, cut[candidate], p.reference_words) for p in pairs]
        return float(metric.compute(metric.per_exam_stats(rows).sum(0))[name])

    for name in metric.names:
        values = [score(candidate, name) for candidate in candidates]
        assert values[best[name]] == pytest.approx(max(values), rel=1e-9, abs=1e-12), name
