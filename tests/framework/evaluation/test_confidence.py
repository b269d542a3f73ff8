"""How much the confidence of a model is worth on a split, by hand and for a small model that has learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, launch

from framework.evaluation.confidence import confidence_summary

REFERENCE = "An oval mass."


def row(exam_id: str, report: str, **sure: float) -> dict[str, Any]:
    words, start = [], 0
    for text in report.split():
        start = report.index(text, start)
        words.append({"text": text, "start": start, "confidence": sure.get(text.strip("."), 1.0), "heat": ""})
        start += len(text)
    return {"id": exam_id, "report": report, "words": words}


def test_findings_that_agree_are_right_and_sure_exams_come_first() -> None:
    rows = [("a", "An oval mass.", REFERENCE), ("b", "A round mass.", REFERENCE), ("c", "Hello.", "Hello.")]
    words = [row("a", "An oval mass."), row("b", "A round mass.", round=0.25), row("c", "Hello.")]
    found = confidence_summary(rows, words, 1.5)
    assert (found["exams"], found["findings"], found["temperature"]) == (2, 6, 1.5)  # shape, lesion and count of both
    assert found["reliability"] == [[0.25, 0.0, 1], [1.0, 1.0, 5]]
    assert found["calibration_error"] == pytest.approx(0.25 / 6, abs=1e-6)
    assert found["risk"] == pytest.approx(1 / 6, abs=1e-6) and found["aurc"] == pytest.approx(1 / 12, abs=1e-6)
    assert found["curve"] == [[0.5, 0.0], [1.0, found["risk"]]]


def test_reports_without_findings_or_words_have_no_summary() -> None:
    assert confidence_summary([("c", "Hello.", "Hello.")], [row("c", "Hello.")], None) == {}
    assert confidence_summary([("a", REFERENCE, REFERENCE)], [], None) == {}


@pytest.mark.long
def test_on_a_small_phantom_the_risk_falls_as_coverage_falls(work: Path) -> None:
    sizes = ("exams=200", "val_exams=40", "test_exams=80")
    words = [f"data.dataset.{size}" for size in sizes] + ["distiller.topics=6", "optimizer.lr=3e-3", "train.epochs=10"]
    words += ["evaluate.every_epochs=10", "evaluate.num_beams=1", "evaluate.bootstrap_samples=0", "train.seed=7"]
    launch(str(ROOT / "recipes" / "smoke.yaml"), *words, "run.name=risk", cwd=work)
    run = work / "runs" / "smoke" / "risk"
    found = json.loads((run / "scores.json").read_text())["test"]["confidence"]
    risks = dict(map(tuple, found["curve"]))
    assert found["temperature"] == json.loads((run / "model" / "calibration.json").read_text())["temperature"]
    assert risks[0.5] < risks[1.0] == found["risk"] and found["aurc"] < found["risk"] - 0.02
