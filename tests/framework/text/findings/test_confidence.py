"""The confidence of findings is that of the least sure word that states them first."""

from __future__ import annotations

from framework.text.findings.confidence import findings_of
from framework.text.words import Word

REPORT = "Left breast: an oval mass. The oval mass has no enlarged lymph nodes nearby."


def words(report: str, sure: dict[str, float]) -> list[Word]:
    """The words of a report, of which some are less sure, the first time that they occur."""
    left, found, start = dict(sure), [], 0
    for text in report.split():
        start = report.index(text, start)
        found.append(Word(text, start, left.pop(text.strip(".:"), 0.9), None))
        start += len(text)
    return found


def test_a_finding_has_the_least_confidence_of_its_first_words() -> None:
    found = {f"{each}": each for each in findings_of(REPORT, words(REPORT, {"Left": 0.3, "oval": 0.6, "mass": 0.7}))}
    assert found["side: left"].confidence == 0.3 and found["side: left"].words.startswith("Left")
    assert found["shape: oval"].confidence == 0.6, "not that of the second time, which is sure"
    assert found["lesion: present"].confidence == 0.7


def test_what_follows_from_lesions_has_the_confidence_of_the_first_one() -> None:
    (count,) = [each for each in findings_of(REPORT, words(REPORT, {"mass": 0.4})) if each.attribute == "count"]
    assert count.words == "" and count.start is None and count.confidence == 0.4


def test_without_words_no_finding_has_a_confidence() -> None:
    assert {each.confidence for each in findings_of(REPORT, [])} == {None}
