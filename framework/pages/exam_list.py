"""The exams of a page: all of a split, each a card that the page's script shows when it is asked for.

A card is an HTML `template`, which costs the browser nothing until it is shown. The page stays below `LARGEST`: the
exams with most to see have their images and where the model looked, further ones their words, the others their texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from framework.pages.render import macro
from framework.text.findings.compare import KINDS, Compared

LARGEST = 14_500_000  # bytes of a page, which shall stay below 15 MB
AT_ONCE = 12  # cards that are shown, and that a click adds
# Orders of a list: what each is by, 1 for the lowest first or -1, and its name.
ORDERS = (
    ("difference", -1, "most different first"),
    ("agreement", 1, "worst findings first"),
    ("agreement", -1, "best findings first"),
    ("confidence", 1, "least confident first"),
    ("confidence", -1, "most confident first"),
    ("random", 1, "random"),
    ("place", 1, "as in the data"),
)

Card = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class ListedExam:
    """An exam of the list.

    Attributes:
        order: what it can be ordered by, names of `ORDERS`; None for what is not known of this exam.
        compared: its findings, for the choice by attribute.
        cards: its card with less and less to see; each is made when it is needed.
    """

    order: Mapping[str, float | None]
    compared: Sequence[Compared]
    cards: Sequence[Card]


def exam_list(exams: Sequence[ListedExam], used: int, kind: str = "exam") -> dict[str, Any]:
    """What the macro `exams` shows.

    Args:
        used: bytes of the rest of the page.
        kind: the macro that shows a card.
    """
    count = len(exams)
    drawn = random.Random(0).sample(range(count), count)
    card, listed = macro(kind), macro("listed")

    def template(place: int, make: Card) -> Markup:
        order = {**exams[place].order, "random": drawn[place], "place": place}
        attributes = {f"data-{name}": "" if value is None else f"{value:.4g}" for name, value in order.items()}
        findings = dict.fromkeys(f"{each.attribute}:{each.kind}" for each in exams[place].compared)
        return listed({**attributes, "data-findings": " ".join(findings)}, card(make()))

    room, shown = LARGEST - used, dict[int, Markup]()
    for place, exam in enumerate(exams):  # each at least as text
        text = template(place, exam.cards[-1])
        if (room := room - _size(text)) < 0:
            break
        shown[place] = text
    fitting = 0  # how much less than all the next card has, since more has not fitted before
    for place in _by_interest(exams, drawn):
        for less, make in enumerate(exams[place].cards[:-1] if place in shown else ()):
            if less < fitting:
                continue
            text = template(place, make)
            if (more := _size(text) - _size(shown[place])) <= room:
                room, shown[place] = room - more, text
                break
            fitting = less + 1
    known = {"random", "place", *(name for exam in exams for name, value in exam.order.items() if value is not None)}
    return {
        "templates": list(shown.values()),
        "count": count,
        "left_out": count - len(shown),
        "at_once": AT_ONCE,
        "orders": [each for each in ORDERS if each[0] in known],
        "attributes": sorted({each.attribute for exam in exams for each in exam.compared}),
        "kinds": KINDS,
    }


def _by_interest(exams: Sequence[ListedExam], drawn: Sequence[int]) -> Iterator[int]:
    """The places of exams: in turn the worst, the best, and the next at random; each once."""
    places = range(len(exams))
    agreement = {place: exams[place].order.get("agreement") for place in places}
    worst = sorted(places, key=lambda place: (agreement[place] is None, agreement[place] or 0))
    best = sorted(places, key=lambda place: (agreement[place] is None, -(agreement[place] or 0)))
    turns = zip(worst, best, sorted(places, key=lambda place: drawn[place]), strict=True)
    yield from dict.fromkeys(place for turn in turns for place in turn)


def _size(text: str) -> int:
    return len(text.encode())
