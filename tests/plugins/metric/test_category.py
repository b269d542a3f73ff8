"""AUC and kappa of the categories in reports, compared with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from harness import problem
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from framework.exam import Pair
from plugins.metric.category import Category


def metric() -> Category:
    return Category(attribute="pathology", positive="malignant")


def says(category: int) -> str:
    return f"A mass is seen. Impression: BI-RADS category {category}." if category else "A mass is seen."


def pairs(predicted: list[int], reference: list[int], malignant: list[int | None]) -> list[Pair]:
    truths = [{} if each is None else {"pathology": ("benign", "malignant")[each]} for each in malignant]
    return [
        Pair(str(number), says(one), says(other), (), (), truth)
        for number, (one, other, truth) in enumerate(zip(predicted, reference, truths))
    ]


def test_auc_and_kappa_equal_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    predicted, reference, malignant = draw.integers(2, 6, 80), draw.integers(2, 6, 80), draw.integers(0, 2, 80)
    predicted[:5] = 0
    found = metric()(pairs(predicted.tolist(), reference.tolist(), malignant.tolist()))
    assert found["category_auc"] == pytest.approx(roc_auc_score(malignant, predicted))
    assert found["category_kappa"] == pytest.approx(cohen_kappa_score(predicted, reference))


def test_exams_without_the_attribute_or_a_reference_category_do_not_count() -> None:
    found = metric()(pairs([2, 5, 5, 2], [2, 5, 0, 5], [0, 1, None, None]))
    assert found["category_auc"] == 1
    assert found["category_kappa"] == pytest.approx(cohen_kappa_score([2, 5, 2], [2, 5, 5]))


def test_one_report_for_all_exams_tells_nothing() -> None:
    assert metric()(pairs([4] * 4, [2, 3, 4, 5], [0, 0, 1, 1])) == {"category_auc": 0.5, "category_kappa": 0.0}


def test_exams_of_one_kind_have_no_auc() -> None:
    with pytest.warns(UserWarning, match="means nothing"):
        assert metric()(pairs([2, 5], [2, 5], [1, 1]))["category_auc"] == 0.5


def test_an_attribute_without_categories_is_refused() -> None:
    with problem("unknown-name", place="evaluate.metrics") as found:
        Category(category="birad", attribute="pathology", positive="malignant")
    assert "'birads'" in found[0].hint
