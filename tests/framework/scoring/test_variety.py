"""A model that writes one report for nearly every exam is reported as such."""

from __future__ import annotations

import pytest

from framework.scoring.scorer import Rows, Scorer
from framework.scoring.variety import describe_variety, variety, variety_summary
from plugins.metric.findings_f1 import FindingsF1
from plugins.tokenizer.words import Words

NORMAL = "no mass is seen ."
MASS = "an oval hypoechoic mass is seen in the left breast ."


def rows(predictions: list[str], references: list[str]) -> Rows:
    return [(str(number), *pair) for number, pair in enumerate(zip(predictions, references, strict=True))]


@pytest.fixture
def scorer() -> Scorer:
    tokenizer = Words()
    tokenizer.fit([NORMAL, MASS])
    return Scorer([FindingsF1()], tokenizer)


def test_variety_counts_different_texts_and_the_most_frequent_one() -> None:
    assert variety(["a", "b", "a", "c"]) == {"different_reports": 3, "most_frequent_share": 0.5}


def test_a_model_that_writes_one_report_has_collapsed(scorer: Scorer) -> None:
    references = [f"{MASS} it is {size} mm ." for size in range(10)]
    found = variety_summary(scorer, rows([NORMAL] * 10, references))
    assert found["collapsed"] and {"echogenicity", "shape", "side"} <= set(found["never_stated"])
    assert any(line.startswith("Warning:") for line in describe_variety(found))


def test_values_that_no_report_states_are_named_behind_whole_attributes(scorer: Scorer) -> None:
    round_one, oval = MASS.replace("an oval", "a round"), MASS.replace(" in the left breast", "")
    found = variety_summary(scorer, rows([oval] * 5, [round_one, round_one, MASS, oval, f"{oval} it is spiculated ."]))
    assert found["never_stated"] == ["margin", "side", "shape round"]


def test_a_model_that_repeats_itself_is_reported_with_the_share_of_the_references(scorer: Scorer) -> None:
    references = [f"{MASS} it is {size} mm ." for size in range(10)]
    found = variety_summary(scorer, rows([NORMAL] * 5 + references[5:], references))
    assert found["repetitive"] and not found["collapsed"]
    assert any("50 %" in line and "10 %" in line for line in describe_variety(found))


def test_a_model_as_uniform_as_its_references_has_not_collapsed(scorer: Scorer) -> None:
    texts = [NORMAL] * 8 + [MASS, f"{MASS} it is 3 mm ."]
    found = variety_summary(scorer, rows(texts, texts))
    assert not found["collapsed"] and not found["never_stated"]
    assert not any(line.startswith("Warning:") for line in describe_variety(found))
