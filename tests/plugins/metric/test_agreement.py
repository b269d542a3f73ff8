"""Agreement on the values of attributes, by hand-made reports."""

from __future__ import annotations

import numpy as np
import pytest
from harness import problem

from framework.exam import Pair
from plugins.metric.agreement import Agreement

OVAL = "An oval mass is seen. The margin is circumscribed."
ROUND = "A round mass is seen. The margin is circumscribed."
SPICULATED = "An oval mass is seen. The margin is spiculated."


def pairs(*texts: tuple[str, str]) -> list[Pair]:
    return [Pair(str(number), *both, (), ()) for number, both in enumerate(texts)]


def test_agreement_is_the_mean_over_attributes_of_shares_of_exams() -> None:
    found = Agreement(attributes=["shape", "margin"])(
        pairs((OVAL, OVAL), (ROUND, OVAL), (OVAL, SPICULATED), ("", OVAL))
    )
    assert found["agreement/shape"] == pytest.approx(2 / 4)
    assert found["agreement/margin"] == pytest.approx(2 / 4)
    assert found["agreement"] == pytest.approx(1 / 2)


def test_exams_count_for_an_attribute_if_their_reference_states_one_value() -> None:
    metric = Agreement(attributes=["shape", "margin"])
    found = metric(pairs((OVAL, OVAL), (OVAL, "An oval mass is seen."), (ROUND, f"{OVAL} {ROUND}")))
    assert found["agreement/shape"] == 1, "the third reference states two shapes"
    assert found["agreement/margin"] == pytest.approx(2 / 2)


def test_an_attribute_that_no_reference_states_does_not_count() -> None:
    found = Agreement(attributes=["shape", "doppler"])(pairs((OVAL, OVAL)))
    assert found == {"agreement": 1.0, "agreement/shape": 1.0}
    with pytest.warns(UserWarning, match="means nothing"):
        assert Agreement(attributes=["doppler"])(pairs((OVAL, OVAL))) == {"agreement": 0.0}


def test_the_best_constant_agrees_most() -> None:
    metric = Agreement(attributes=["shape", "margin"])
    rows = pairs(("", OVAL), ("", ROUND), ("", ROUND), ("", SPICULATED), ("", "A round mass is seen."))
    texts = [SPICULATED, OVAL, ROUND]
    scores = [metric([Pair(p.exam_id, text, p.reference, (), ()) for p in rows])["agreement"] for text in texts]
    assert metric.best_constants(texts, [()] * 3, rows) == {"agreement": int(np.argmax(scores))} == {"agreement": 2}


def test_an_unknown_attribute_is_refused_with_the_nearest_one() -> None:
    with problem("unknown-name", place="evaluate.metrics") as found:
        Agreement(attributes=["shape", "margins"])
    assert "'margin'" in found[0].hint
    with problem("missing-key", place="evaluate.metrics"):
        Agreement(attributes=[])
