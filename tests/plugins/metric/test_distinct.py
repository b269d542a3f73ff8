"""Distinct n-grams, counted by hand."""

from __future__ import annotations

from pairs import pair

from plugins.metric.distinct import Distinct


def test_ngrams_are_counted_over_the_whole_split() -> None:
    pairs = [pair(0, "a mass a mass", "a mass"), pair(1, "a cyst", "the cyst")]
    values = Distinct()(pairs)
    assert values["distinct_1"] == 3 / 6  # a, mass, cyst
    assert values["distinct_2"] == 3 / 4  # a mass, mass a, a cyst
    assert values["distinct_1/references"] == values["distinct_2/references"] == 1
    assert set(Distinct()([pair(0, "", "a mass")]).values()) == {0.0, 1.0}


def test_one_report_for_all_is_less_diverse_than_the_references() -> None:
    references = ["a mass in the left breast", "no lesion is seen", "the nodule measures 1.8 cm"] * 3
    values = Distinct()([pair(number, "a mass in the left breast", text) for number, text in enumerate(references)])
    assert values["distinct_1"] < values["distinct_1/references"] / 2
