"""The exams of a page: all of them, within the size of a page, with less and less to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from framework.pages import exam_list as module
from framework.pages.exam_card import exam_card
from framework.pages.exam_list import ListedExam, exam_list
from framework.text.findings.compare import compare

REFERENCE = "An oval mass."


def exam(number: int, agreement: float | None) -> ListedExam:
    """An exam whose first card is 2,000 bytes longer than its last."""

    def card(text: str) -> Mapping[str, Any]:
        return exam_card(f"e{number}", None, f"A round mass. {text}", None, REFERENCE)

    cards = (lambda: card("x" * 2000), lambda: card("x" * 500), lambda: card(""))
    return ListedExam({"agreement": agreement}, compare("A round mass.", REFERENCE), cards)


EXAMS = [exam(number, number / 10) for number in range(10)]


def sizes(room: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(module, "LARGEST", room)
    return [len(each) for each in exam_list(EXAMS, 0)["templates"]]


def test_all_exams_are_there_and_can_be_ordered_and_chosen() -> None:
    found = exam_list(EXAMS, 0)
    assert len(found["templates"]) == found["count"] == 10 and found["left_out"] == 0
    assert {name for name, _, _ in found["orders"]} == {"agreement", "random", "place"}
    assert "shape" in found["attributes"]
    assert 'data-agreement="0.3"' in found["templates"][3] and "shape:wrong" in found["templates"][3]


def test_the_worst_and_the_best_keep_most_where_a_page_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sizes(1_000_000, monkeypatch)
    least = sum(whole) - 10 * 2000
    some = sizes(least + 5000, monkeypatch)
    assert sum(some) <= least + 5000 and len(some) == 10
    assert some[0] == whole[0] and some[9] == whole[9] and sorted(some)[0] < min(whole) - 1500


def test_exams_for_which_there_is_no_room_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sizes(1_000_000, monkeypatch)
    monkeypatch.setattr(module, "LARGEST", (sum(whole) - 10 * 2000) // 2)
    found = exam_list(EXAMS, 0)
    assert 0 < found["left_out"] == 10 - len(found["templates"])


def test_an_exam_without_findings_is_ordered_last() -> None:
    found = exam_list([exam(0, None), exam(1, 0.5)], 0)
    assert 'data-agreement=""' in found["templates"][0]
    assert exam_list([exam(0, None)], 0)["orders"][0][0] == "random"
