"""How much the confidence of a model's findings is worth on a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from framework.pages.exam_card import stored_words
from framework.scoring.scorer import Rows
from framework.scoring.selective import aurc, calibration_error, reliability, risk_coverage
from framework.text.findings.compare import agreement, compare
from framework.text.findings.confidence import findings_of
from framework.text.words import report_confidence

POINTS = 50  # of the stored curve


def confidence_summary(rows: Rows, words: Sequence[Mapping[str, Any]], temperature: float | None) -> dict[str, Any]:
    """The calibration of findings, and the risk of exams by how sure the model is of their reports.

    The confidence of an exam is `report_confidence`. The risk of an exam is 1 - F1 of its findings against the
    reference. Exams without findings in both texts are left out.

    Args:
        words: of each report, as words/SPLIT.jsonl holds them.
        temperature: of the model; None if it is not calibrated.

    Returns:
        exams, findings: their numbers.
        temperature: as given.
        calibration_error: expected calibration error of findings, see `selective.calibration_error`.
        reliability: confidence, share that agrees with the reference, and number of findings, by confidence.
        risk, aurc: the mean risk of all exams, and the area under the risk-coverage curve.
        curve: [coverage, risk] of the most confident exams.

        Empty if no exam has findings.
    """
    known = {row["id"]: row for row in words}
    sure, right, confidences, risks = [], [], [], []
    for exam_id, report, reference in rows:
        compared = compare(report, reference)
        f1 = agreement(compared)
        if exam_id not in known or f1 is None:
            continue
        own = stored_words(known[exam_id])
        findings = findings_of(report, own)
        agreed = {(each.attribute, each.value) for each in compared if each.kind == "agreed"}
        judged = [each for each in findings if each.confidence is not None]
        sure += [each.confidence for each in judged]
        right += [(each.attribute, each.value) in agreed for each in judged]
        confidences.append(report_confidence(own))
        risks.append(1 - f1)
    if not sure:
        return {}
    bins, curve_N = reliability(sure, right), risk_coverage(confidences, risks)  # type: ignore[arg-type]
    count = len(curve_N)
    places = sorted({max(1, round(count * (point + 1) / POINTS)) for point in range(POINTS)})
    return {
        "exams": count,
        "findings": len(sure),
        "temperature": temperature,
        "calibration_error": round(calibration_error(bins), 6),
        "reliability": [list(each) for each in bins],
        "risk": round(float(curve_N[-1]), 6),
        "aurc": round(aurc(curve_N), 6),
        "curve": [[round(place / count, 6), round(float(curve_N[place - 1]), 6)] for place in places],
    }
