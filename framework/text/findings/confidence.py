"""How sure a model is of each finding of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from framework.text.findings.reader import Statement, statements
from framework.text.words import Word

LESION = ("lesion", "present")
UNSURE = 0.5  # a finding with less confidence is more often wrong than right, if the model is calibrated


@dataclass(frozen=True)
class Finding:
    """A finding that a generated report states.

    Attributes:
        words: that state it, as they stand in the report; empty for a finding that follows from others, such as the
            number of lesions, and where the lexicon reads other words in their place.
        start: the place of these words in the report; None without words.
        confidence: 0 to 1, see `findings_of`; None if no word gives one.
    """

    attribute: str
    value: str
    words: str
    start: int | None
    confidence: float | None

    def __str__(self) -> str:
        return f"{self.attribute}: {self.value}"


def findings_of(report: str, words: Sequence[Word]) -> tuple[Finding, ...]:
    """The findings of a report, each once, with their confidence.

    The confidence of a finding is that of the least sure of the words that state it where the report states it first:
    later words repeat what is decided, and the product over words would count every other wording as doubt. A finding
    that no words state, such as the number of lesions, has the confidence of the first lesion. Words are given those
    before them, so a finding that an earlier word decides, as "The skin" may begin a normal report, shows as surer than
    it is; `report_confidence` counts all words.
    """
    first: dict[tuple[str, str], Statement] = {}
    for each in statements(report):
        first.setdefault((each.attribute, each.value), each)
    sure = {finding: _least(each, words) for finding, each in first.items()}
    found = []
    for (attribute, value), each in first.items():
        stated = "" if each.span is None else report[slice(*each.span)]
        confidence = sure[attribute, value] if each.words else sure.get(LESION)
        found.append(Finding(attribute, value, stated, each.span and each.span[0], confidence))
    return tuple(found)


def _least(statement: Statement, words: Sequence[Word]) -> float | None:
    if statement.span is None:
        return None
    start, end = statement.span
    return min((w.confidence for w in words if w.start < end and w.start + len(w.text) > start), default=None)
