"""The columns that a recipe names, their shares, and patients in two splits."""

import pytest
from harness import problem

from framework.data.columns import named_columns, require_columns, shares_problems, split_leaks


def test_columns_are_a_name_and_those_of_images_may_be_a_list() -> None:
    images, others, problems = named_columns({"image": ["a", "b"], "report": "r", "patient": ["p"]}, "key")
    assert (images, others, problems) == (["a", "b"], {"report": "r", "patient": "p"}, [])
    images, others, problems = named_columns({"image": [], "report": ["r", "s"]}, "key")
    assert (images, others) == ([], {})
    assert [(each.code, each.place) for each in problems] == [
        ("missing-key", "key.columns.image"),
        ("wrong-type", "key.columns.report"),
    ]


@pytest.mark.parametrize("shares", [{"train": 0.5, "val": 0.2, "test": 0.2}, {"train": 1.1, "val": -0.1}])
def test_shares_above_0_have_the_sum_1(shares: dict[str, float]) -> None:
    (found,) = shares_problems(shares, "key")
    assert (found.code, found.place) == ("out-of-range", "key.shares")
    assert not shares_problems(None, "key") and not shares_problems({"train": 0.7, "val": 0.1, "test": 0.2}, "key")


def test_a_column_that_a_table_lacks_is_named_with_the_nearest_one() -> None:
    require_columns(["a"], {"report": "text"}, ["text", "a"], "table", "key")
    with problem("unknown-name", "key.columns.report"):
        require_columns(["a"], {"report": "texts"}, ["text", "a"], "table", "key")


def test_every_exam_of_a_patient_in_another_split_is_named() -> None:
    exams = [("p", "train", "row 1"), ("q", "val", "row 2"), ("p", "train", "row 3"), ("p", "val", "row 4")]
    assert [(error.code, error.place) for error in split_leaks(exams)] == [("split-leak", "row 4")]
