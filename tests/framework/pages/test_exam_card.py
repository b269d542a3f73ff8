"""The card of an exam: findings beside the reference, marks in both texts, topics, confidence."""

from __future__ import annotations

from typing import Any

import numpy as np
from html_page import Page

from framework.pages.exam_card import exam_card, exam_frame, stored_words, word_rows
from framework.pages.render import macro
from framework.text.words import Word

IMAGES = np.zeros((1, 1, 4, 4), np.uint8)
REPORT, REFERENCE = "A round mass in the left breast.", "An oval mass in the left breast with calcification."


def words(report: str, sure: float = 0.9) -> list[Word]:
    return [Word(text, report.index(text), sure, None) for text in report.split()]


def shown(**values: Any) -> Page:
    card = exam_card("7", IMAGES, REPORT, word_rows(words(REPORT)), REFERENCE, **values)
    return Page(str(macro("exam")(card)))


def test_findings_are_listed_with_those_that_differ_first() -> None:
    card = exam_card("7", IMAGES, REPORT, word_rows(words(REPORT, 0.3)), REFERENCE)
    lines = [(each["kind"], each["name"], each["value"], each["expected"]) for each in card["findings"]]
    assert lines[:2] == [("wrong", "shape", "round", "oval"), ("missed", "calcification", "present", None)]
    assert {kind for kind, *_ in lines[2:]} == {"agreed"}
    assert all(each["unsure"] == (each["kind"] != "missed") for each in card["findings"])


def test_words_are_marked_by_the_worst_finding_that_they_state() -> None:
    page = shown()
    marks = [(at["class"] or "").removeprefix("word").strip() for at in page.all("span", "word")]
    assert dict(zip(REPORT.split(), marks)) == {
        **dict.fromkeys(REPORT.split(), ""), "round": "wrong", "mass": "agreed", "left": "agreed", "breast.": "agreed",
    } | {"breast.": marks[-1]}  # fmt: skip
    card = exam_card("7", IMAGES, REPORT, None, REFERENCE)
    assert ("oval", "wrong") in card["reference_parts"] and ("calcification", "missed") in card["reference_parts"]
    assert "".join(text for text, _ in card["reference_parts"]) == REFERENCE
    assert "".join(text for text, _ in card["parts"]) == REPORT


def test_a_card_says_where_the_lexicon_reads_nothing() -> None:
    assert "The lexicon reads" not in shown().text
    for report, reference, text in (
        ("Hello.", REFERENCE, "The lexicon reads no finding in the generated report."),
        (REPORT, "Hello.", "The lexicon reads no finding in the reference."),
        ("Hello.", "Good day.", "The lexicon reads no finding in the generated report and the reference."),
    ):
        assert exam_card("7", IMAGES, report, None, reference)["unread"] == text
    assert exam_card("7", IMAGES, "Hello.", None)["unread"] == "The lexicon reads no finding in the generated report."


def test_topics_of_the_reference_and_of_the_topic_head_are_compared() -> None:
    assert "(wrong)" in shown(true_topic="1: cyst", predicted_topic="0: clear").text
    assert "(right)" in shown(true_topic="1: cyst", predicted_topic="1: cyst").text
    assert "topic" not in shown().text


def test_a_card_says_that_its_confidence_is_not_calibrated() -> None:
    assert "not calibrated" in shown().text and "not calibrated" not in shown(calibrated=True).text


def test_nearest_training_exams_are_shown_if_they_are_known() -> None:
    near = [{"id": "t1", "report": "A cyst."}]
    assert "t1 A cyst." in shown(nearest=near).text and not shown().all("details")


def test_stored_words_are_those_that_were_stored() -> None:
    before = words(REPORT)
    after = stored_words(word_rows(before))
    assert [(w.text, w.start, w.confidence) for w in after] == [(w.text, w.start, w.confidence) for w in before]


def test_a_card_without_a_reference_lists_findings_without_a_verdict() -> None:
    page = Page(exam_frame(exam_card("7", IMAGES, REPORT, word_rows(words(REPORT)))))
    (frame,) = page.all("iframe")
    card = Page(frame["srcdoc"] or "")
    assert "shape: round 90 %" in card.text and not card.all("b", "agreed")
