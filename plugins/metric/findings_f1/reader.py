"""Reads what a report states, as (attribute, value), by the rules of lexicon.yaml.

A report is cut into sentences and clauses. Each clause is about a lesion, the gland or lymph nodes: by its own words,
or else by those of its neighbours. Then each attribute is looked for in the clauses of its scope, and a value counts
unless a denial ("no", 未见) stands before it in its clause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

LEXICON = Path(__file__).with_name("lexicon.yaml")
Language = Literal["en", "zh"]
Finding = tuple[str, str]

CJK = re.compile(r"[\u3400-\u9fff]")
LATIN_WORD = re.compile(r"[a-zA-Z][a-zA-Z-]+")
# A point or comma within a number is no end of anything.
SENTENCES = {"en": re.compile(r"[!?;\n]|\.(?!\d)"), "zh": re.compile(r"[。；！？;!?\n]|\.(?!\d)")}
CLAUSES = {"en": re.compile(r",(?!\d)"), "zh": re.compile(r"，|,(?!\d)")}
ALTERNATIVE = re.compile(r"^(?:and/or|or|nor)\b")
LISTED_WORDS = 5  # "no nodule, thick-walled cyst, or calcification": as long as an item of such a list may be
# "oval, hypoechoic mass": the comma of adjectives, not of clauses.
ADJECTIVES = (
    r"^(?!(?:an?|the|no|with|without|and|or|in|at|multiple|several)\b)(?:(?:[\w-]+|[\w-]+ and [\w-]+),? ){0,4}?"
)
NOT_ADJECTIVES = re.compile(r"\b(?:an?|the|no|with|without|is|are|in|of|there|or|not|shows?|seen|measuring)\b")


Span = tuple[int, int]


class Match(NamedTuple):
    """Words of a clause that state a value, if they stand in the rule's scope and are denied or not as it wants."""

    finding: Finding
    scope: str
    quality: bool  # of a thing, and no finding by itself: the denial of another thing does not reach it
    if_denied: bool
    start: int
    end: int


@dataclass(frozen=True)
class Look:
    """What a clause shows by itself, whatever stands around it."""

    lesions: tuple[Span, ...]
    glands: tuple[Span, ...]
    nodes: bool
    refers_back: bool
    refers_ahead: bool
    denied: tuple[Span, ...]
    denied_qualities: tuple[Span, ...]
    open_denial: bool  # one that reaches to the end of the clause
    matches: tuple[Match, ...]

    def denies(self, place: int, quality: bool) -> bool:
        return any(start <= place < end for start, end in (self.denied_qualities if quality else self.denied))


@dataclass
class Clause:
    """A clause in its place: what it is about may come from its neighbours."""

    text: str
    sentence: int
    look: Look
    all_denied: bool = False  # an item of a list that an earlier clause denies
    topic: str | None = None

    def denies(self, match: Match) -> bool:
        return self.all_denied or self.look.denies(match.start, match.quality)

    @property
    def lesions(self) -> tuple[Span, ...]:
        """Affirmed ones."""
        if self.all_denied:
            return ()
        return tuple(span for span in self.look.lesions if not self.look.denies(span[0], quality=False))

    @property
    def own_topic(self) -> str | None:
        if self.lesions:
            return "lesion"
        if self.look.nodes:
            return "node"
        if self.look.glands:
            return "gland"
        return "no lesion" if self.look.lesions else None

    def in_scope(self, match: Match) -> bool:
        if match.scope == "any":
            return True
        if match.scope != "gland":
            return self.topic == match.scope
        if not self.look.glands:
            return self.topic == "gland"
        if not self.lesions:
            return self.topic != "node"
        return _nearest(match, self.look.glands) < _nearest(match, self.lesions)


def _nearest(match: Match, spans: Sequence[Span]) -> int:
    """Letters between the match and the nearest of `spans`."""
    return min(max(start - match.end, match.start - end, 0) for start, end in spans)


@dataclass(frozen=True)
class Rule:
    """One attribute: what states its values, and what states them when denied."""

    attribute: str
    scope: str
    stated: re.Pattern[str] | None
    by_denial: re.Pattern[str] | None
    values: Mapping[str, str]  # group name to value


def _any_of(patterns: Sequence[str], where: str) -> re.Pattern[str]:
    try:
        return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    except re.error as error:
        raise ValueError(f"{LEXICON.name}: {where}: {error}") from None


def _grouped(values: Mapping[str, Any], key: str, where: str) -> re.Pattern[str] | None:
    """One expression of all values, each under its group; the first of those that begin at a place wins."""
    groups = [
        f"(?P<v{number}>{'|'.join(forms[key])})" for number, forms in enumerate(values.values()) if forms.get(key)
    ]
    return _any_of(groups, where) if groups else None


class Reader:
    """The lexicon in one language."""

    def __init__(self, language: Language, lexicon: Mapping[str, Any]) -> None:
        self.language = language

        def listed(name: str) -> re.Pattern[str]:
            return _any_of(lexicon[name][language], f"{name}/{language}")

        self._denials = listed("denials")
        self._behind = listed("denials_behind")
        self._ends = listed("denial_ends")
        # None in Chinese, whose comma already ends the clause
        also = lexicon["denial_ends_of_qualities"][language]
        self._ends_of_qualities = listed("denial_ends_of_qualities") if also else None
        self._refers_back = listed("refers_back")
        self._refers_ahead = listed("refers_ahead")
        self._topics = {
            name: _any_of(forms[language], f"topics/{name}/{language}") for name, forms in lexicon["topics"].items()
        }
        lesion = "|".join(lexicon["topics"]["lesion"][language])
        self._adjectives = re.compile(f"{ADJECTIVES}(?={lesion})")
        self._rules = []
        for attribute, entry in lexicon["attributes"].items():
            stated = _grouped(entry["values"], language, f"{attribute}/{language}")
            by_denial = _grouped(entry["values"], f"not_{language}", f"{attribute}/not_{language}")
            values = {f"v{number}": value for number, value in enumerate(entry["values"])}
            self._rules.append(Rule(attribute, entry["scope"], stated, by_denial, values))
        # Reports repeat their clauses far more often than themselves; a clause seen before costs a tenth.
        self._look = lru_cache(maxsize=16384)(self._look_at)

    def read(self, text: str) -> frozenset[Finding]:
        """What `text` states."""
        clauses = self._cut(text)
        if self.language == "en":
            _spread_denials(clauses)
        _settle_topics(clauses)
        found = {
            match.finding
            for clause in clauses
            for match in clause.look.matches
            if clause.denies(match) is match.if_denied and clause.in_scope(match)
        }
        if any(clause.lesions for clause in clauses):
            found.add(("lesion", "present"))
            if ("count", "multiple") not in found:
                found.add(("count", "single"))
        elif any(clause.look.lesions for clause in clauses):
            found.add(("lesion", "absent"))
        return frozenset(found)

    def _look_at(self, clause: str) -> Look:
        denied = self._denied(clause, self._ends.finditer(clause))
        qualities = denied
        if denied and self._ends_of_qualities:
            qualities = self._denied(clause, [*self._ends.finditer(clause), *self._ends_of_qualities.finditer(clause)])
        return Look(
            lesions=_spans(self._topics["lesion"], clause),
            glands=_spans(self._topics["gland"], clause),
            nodes=self._topics["node"].search(clause) is not None,
            refers_back=self._refers_back.match(clause) is not None,
            refers_ahead=self._refers_ahead.match(clause) is not None,
            denied=denied,
            denied_qualities=qualities,
            open_denial=any(end > len(clause) for _, end in denied),
            matches=tuple(self._matches(clause)),
        )

    def _matches(self, clause: str) -> Iterator[Match]:
        for rule in self._rules:
            for pattern, if_denied in ((rule.stated, False), (rule.by_denial, True)):
                for match in pattern.finditer(clause) if pattern else ():
                    finding = rule.attribute, rule.values[str(match.lastgroup)]
                    yield Match(finding, rule.scope, rule.by_denial is None, if_denied, *match.span())

    def _denied(self, clause: str, ends: Iterable[re.Match[str]]) -> tuple[Span, ...]:
        """Where words are denied: from a denial to what ends it, or back from a `not seen`."""
        stops = [end.end() for end in ends]
        reach = []
        behind = _spans(self._behind, clause)
        for start, _ in behind:
            reach.append((max((stop for stop in stops if stop <= start), default=0), start))
        for start, end in _spans(self._denials, clause):
            if not any(from_ <= start < to for from_, to in behind):
                reach.append((end, min((stop for stop in stops if stop > end), default=len(clause) + 1)))
        return tuple(reach)

    def _cut(self, text: str) -> list[Clause]:
        text = text.lower()
        if self.language == "zh":
            text = "".join(text.split())
        clauses = []
        for number, sentence in enumerate(SENTENCES[self.language].split(text)):
            parts = [" ".join(part.split()) for part in CLAUSES[self.language].split(sentence)]
            parts = [part for part in parts if part]
            if self.language == "en":
                parts = self._join_adjectives(parts)
            clauses += [Clause(part, number, self._look(part)) for part in parts]
        return clauses

    def _join_adjectives(self, parts: list[str]) -> list[str]:
        joined: list[str] = []
        for part in reversed(parts):
            before = self._adjectives.match(joined[-1]) if joined else None
            if before and not NOT_ADJECTIVES.search(before.group()):
                joined[-1] = f"{part}, {joined[-1]}"
            else:
                joined.append(part)
        return joined[::-1]


def _settle_topics(clauses: Sequence[Clause]) -> None:
    """A clause without a topic takes that of the clause before, or of the next where a sentence begins with it."""
    last: str | None = None
    for number, clause in enumerate(clauses):
        topic = clause.own_topic
        first = number == 0 or clauses[number - 1].sentence != clause.sentence
        if topic in (None, "gland") and last and clause.look.refers_back:
            topic = last
        elif (topic is None and first) or (topic == "gland" and clause.look.refers_ahead):
            ahead = (later.own_topic for later in clauses[number + 1 :] if later.sentence == clause.sentence)
            topic = next((later for later in ahead if later), topic)
        clause.topic = last = topic or last


def _spread_denials(clauses: Sequence[Clause]) -> None:
    """`no nodule, cyst, or calcification`: the denial holds to the end of the list."""
    for number, clause in enumerate(clauses):
        if not ALTERNATIVE.match(clause.text):
            continue
        items = [clause]
        for before in reversed(clauses[:number]):
            if before.sentence != clause.sentence:
                break
            if before.look.open_denial:
                for item in items:
                    item.all_denied = True
                break
            if len(before.text.split()) > LISTED_WORDS:
                break
            items.append(before)


def _spans(pattern: re.Pattern[str], text: str) -> tuple[Span, ...]:
    return tuple(match.span() for match in pattern.finditer(text))


@cache
def _lexicon() -> Any:
    return yaml.safe_load(LEXICON.read_text(encoding="utf-8"))


@cache
def _readers() -> dict[str, Reader]:
    return {"en": Reader("en", _lexicon()), "zh": Reader("zh", _lexicon())}


@cache
def attributes() -> tuple[str, ...]:
    """All that `read` may tell of, by alphabet."""
    return tuple(sorted({"lesion", "count", *_lexicon()["attributes"]}))


@lru_cache(maxsize=16384)
def read(text: str) -> frozenset[Finding]:
    """What a report states, as (attribute, value).

    Chinese where there are as many Chinese characters as Latin words, so that `BI-RADS 3类` is.
    """
    chinese = len(CJK.findall(text))
    return _readers()["zh" if chinese and chinese >= len(LATIN_WORD.findall(text)) else "en"].read(text)
