"""Risk by coverage and the calibration of confidences, beside values by hand."""

from __future__ import annotations

import numpy as np
import pytest

from framework.scoring.selective import aurc, calibration_error, reliability, risk_coverage


def test_the_curve_is_the_mean_risk_of_the_most_confident() -> None:
    curve_N = risk_coverage([0.1, 0.9, 0.5], [1.0, 0.0, 0.5])
    assert curve_N.tolist() == [0.0, 0.25, 0.5] and aurc(curve_N) == 0.25


def test_equal_confidences_share_their_risk_so_that_their_order_does_not_matter() -> None:
    risks = [1.0, 0.0, 0.5, 0.0]
    assert risk_coverage([0.5, 0.5, 0.1, 0.5], risks).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.375])
    same = risk_coverage([0.5] * 4, risks)
    assert same.tolist() == pytest.approx([0.375] * 4), "without information: the risk of all"


def test_a_confidence_that_orders_by_risk_has_the_least_area() -> None:
    draw = np.random.default_rng(0)
    risk_N = draw.random(200)
    best, none, worst = (aurc(risk_coverage(order, risk_N)) for order in (1 - risk_N, draw.random(200), risk_N))
    assert best < none < worst and best < 0.3 and none == pytest.approx(risk_N.mean(), abs=0.05)


def test_the_calibration_error_weighs_bins_by_their_items() -> None:
    bins = reliability([0.95, 0.95, 0.95, 0.95, 0.15], [True, True, True, False, False])
    assert [(each.confidence, each.right, each.items) for each in bins] == [(0.15, 0.0, 1), (0.95, 0.75, 4)]
    assert calibration_error(bins) == pytest.approx((0.15 + 4 * 0.2) / 5)
    assert calibration_error(reliability([1.0, 0.0], [True, False])) == 0
