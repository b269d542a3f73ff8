"""Compares a report with its reference by findings, whatever the wording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from framework.text.findings.expression import Span
from framework.text.findings.numbers import same_size
from framework.text.findings.reader import APART, REMEMBERED, Statement, statements

Kind = Literal["wrong", "invented", "missed", "agreed"]
KINDS: tuple[Kind, ...] = ("wrong", "invented", "missed", "agreed")  # the worst first


@dataclass(frozen=True)
class Compared:
    """A finding of a report, of its reference, or of both.

    Attributes:
        kind: agreed: both state it; wrong: both state the attribute with other values; invented: only the report does;
            missed: only the reference does.
        value: in the report; None if it is missed.
        expected: in the reference; None if it is invented.
        spans: of the words that state it, in the report.
        expected_spans: in the reference.
    """

    kind: Kind
    attribute: str
    value: str | None
    expected: str | None
    spans: tuple[Span, ...] = ()
    expected_spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class _Stated:
    """A value of an attribute and where a text states it."""

    first: Statement
    spans: tuple[Span, ...]

    def agrees(self, other: _Stated) -> bool:
        one, two = self.first.size, other.first.size
        return self.first.value == other.first.value if one is None or two is None else same_size(one, two)


@lru_cache(maxsize=REMEMBERED)
def compare(report: str, reference: str) -> tuple[Compared, ...]:
    """Every finding of the two texts, by attribute in the order of the reference, then of the report.

    Sizes agree within the tolerance of the metric findings_f1. Of an attribute with several values, those that agree
    are taken out first; what is left of both sides is paired as wrong values.
    """
    ours, theirs = _by_attribute(report), _by_attribute(reference)
    found: list[Compared] = []
    for attribute in dict.fromkeys([*theirs, *ours]):
        left, right = list(ours.get(attribute, ())), list(theirs.get(attribute, ()))
        for own in tuple(left):
            if other := next((each for each in right if own.agrees(each)), None):
                left.remove(own)
                right.remove(other)
                found.append(_pair("agreed", attribute, own, other))
        found += [_pair("wrong", attribute, own, other) for own, other in zip(left, right)]
        found += [_pair("invented", attribute, own, None) for own in left[len(right) :]]
        found += [_pair("missed", attribute, None, other) for other in right[len(left) :]]
    return tuple(found)


def agreement(compared: Sequence[Compared]) -> float | None:
    """F1 of the findings of one exam, of the attributes that the overall F1 counts; None if neither text states any."""
    counted = [each for each in compared if each.attribute not in APART]
    stated = sum((each.value is not None) + (each.expected is not None) for each in counted)
    return 2 * sum(each.kind == "agreed" for each in counted) / stated if stated else None


def _by_attribute(text: str) -> dict[str, list[_Stated]]:
    """The values of each attribute of a text, each once."""
    found: dict[str, dict[str, list[Statement]]] = {}
    for each in statements(text):
        found.setdefault(each.attribute, {}).setdefault(each.value, []).append(each)
    return {
        attribute: [
            _Stated(same[0], tuple(each.span for each in same if each.span is not None)) for same in values.values()
        ]
        for attribute, values in found.items()
    }


def _pair(kind: Kind, attribute: str, own: _Stated | None, other: _Stated | None) -> Compared:
    return Compared(
        kind,
        attribute,
        None if own is None else own.first.value,
        None if other is None else other.first.value,
        () if own is None else own.spans,
        () if other is None else other.spans,
    )
