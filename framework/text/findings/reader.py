"""Extracts the findings of a report as (attribute, value) by the rules of lexicon.yaml.

A report is split into sentences and clauses. The topic of each clause is a lesion, the gland, lymph nodes, surgery or
another structure: from its own words, or from its neighbours. A nodule of the armpit or neck is a lymph node, and what
lies in another organ is left out. Each attribute is searched in clauses of its scope, and a value counts unless a
negation ("no", 未见) precedes it in the clause. A finding of a lesion belongs to the side that its clause names, or to
the last named one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from framework.text.findings.expression import Expression, Span
from framework.text.findings.numbers import Size, joined, numbers_of, shown

LEXICON = Path(__file__).with_name("lexicon.yaml")
Language = Literal["en", "zh"]
Finding = tuple[str, str]
Measure = tuple[str, Size]  # the side of its lesion, or "", and its diameters

# Negative findings, by their name in the aspect `denial`.
DENIALS = {
    ("lesion", "absent"): "lesion",
    ("calcification", "absent"): "calcification",
    ("doppler", "absent"): "doppler",
    ("lymph_node", "not enlarged"): "lymph_node",
}
# Where one side's words end and the next's begin, in a clause that names both.
JOINTS = {"en": re.compile(r"\b(?:and|while|whereas|but|as)\b"), "zh": re.compile(r"[及和与、而；]")}
APART = frozenset({"clock", "segment", "size", "side_of", "denial"})  # aspects that the overall F1 does not count
UNSIDED = frozenset({"side", "count"})
REMEMBERED = 2**15  # reports, sentences and clauses each
NOTHING = "-"  # a value of the lexicon that takes words away from the other values
ANOTHER = "another"  # a count that depends on the other clauses
SITES = ("side", "place", "clock", "segment")  # lesions that differ in one of these are two
DEPTHS = frozenset({"superficial", "central depth", "deep", "retroareolar"})  # beside any other place
NO_SIDE = ""  # of the isthmus
OF_EACH = re.compile("[各均都]|分别")  # "at 2 o'clock left and 6 o'clock right, each ...": what follows is of all sides

# Full-width letters, digits and signs as the ASCII ones, and one sign for each dash; commas and points keep their own.
HALF_WIDTH = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
HALF_WIDTH |= str.maketrans("．＊－—–‐‑―／＞＜＋％", ".*------/><+%")

DIGIT = re.compile("[0-9]")

CJK = re.compile(r"[\u3400-\u9fff]")
LATIN_WORD = re.compile(r"[a-zA-Z][a-zA-Z-]+")
# "Rt. lobe", "L. breast": a point behind such a letter ends no sentence.
SHORT_SIDE = (
    r"(?<!\b[lr]t\.(?=\s?(?:breast|lobe|thyroid|axilla)\b))(?<!\b[lr]\.(?=\s?(?:breast|lobe|thyroid|axilla)\b))"
)
# A point or comma within a number is no end of anything.
SENTENCES = {
    "en": re.compile(rf"[!?;\n.](?:(?<!\.)|(?!\d){SHORT_SIDE})"),
    "zh": re.compile(r"[。；！？;!?\n.](?:(?<!\.)|(?!\d))"),
}
CLAUSES = {"en": re.compile(r",(?!\d)|(?<=ectomy):"), "zh": re.compile(r"，|,(?!\d)|(?<=[后查年月周])[：:]")}
ALTERNATIVE = re.compile(r"^(?:[\w-]+ ){0,2}(?:and/or|or|nor)\b")
LISTED_WORDS = 5  # "no nodule, thick-walled cyst, or calcification": as long as an item of such a list may be
# "oval, hypoechoic mass": the comma of adjectives, not of clauses.
ADJECTIVES = (
    r"^(?!(?:an?|the|no|with|without|and|or|in|at|multiple|several)\b)(?:(?:[\w-]+|[\w-]+ and [\w-]+),? ){0,4}?"
)
NOT_ADJECTIVES = re.compile(r"\b(?:an?|the|no|with|without|is|are|in|of|there|or|not|shows?|seen|measuring)\b")


class Match(NamedTuple):
    """Words of a clause that state a value, in the rule's scope and negated or not as the rule requires."""

    finding: tuple[str, Any]
    scope: str
    quality: bool  # of a thing, and no finding by itself: the denial of another thing does not reach it
    if_denied: bool
    start: int
    end: int


class Reading(NamedTuple):
    """The findings of a report."""

    findings: frozenset[Finding]  # in words: what the overall F1 counts
    aspects: frozenset[Finding]  # clock, segment; denial; and side_of, such as "left echogenicity hypoechoic"
    sizes: frozenset[Measure]


class Statement(NamedTuple):
    """A finding and the words that state it.

    Attributes:
        words: as the lexicon reads them; empty for a finding that follows from others, such as the number of lesions.
        span: of the words in the report; None where they do not stand there as they are read.
        size: the diameters, of the attribute `size`.
    """

    attribute: str
    value: str
    words: str
    span: Span | None
    size: Size | None


class Place(NamedTuple):
    """Which places a clause names: the organ, where lymph nodes are, signs of a node, another organ."""

    organ: bool
    node_region: bool
    node_sign: bool
    elsewhere: bool


class Look(NamedTuple):
    """Properties of a clause without its context."""

    lesions: tuple[Span, ...]
    affirmed: tuple[Span, ...]  # the lesions that are not negated
    removed: tuple[Span, ...]  # of the words on surgery: a lesion among them is no longer there
    glands: tuple[Span, ...]
    organs: bool
    others: bool
    nodes: bool
    refers_back: bool
    refers_ahead: bool
    inside: bool
    normal: bool
    denied: tuple[Span, ...]
    denied_qualities: tuple[Span, ...]
    open_denial: bool  # one that reaches to the end of the clause
    matches: tuple[Match, ...]
    sizes: tuple[Match, ...]

    def denies(self, place: int, quality: bool) -> bool:
        return any(start <= place < end for start, end in (self.denied_qualities if quality else self.denied))


Site = Mapping[str, Set[str]]  # of a lesion: the values of each attribute of `SITES`


class Stated(NamedTuple):
    """What a clause states in its context."""

    matches: tuple[Match, ...]
    sizes: tuple[Match, ...]
    findings: frozenset[Finding]  # of the matches, aspects too
    of_lesions: tuple[Match, ...]  # matches and sizes that belong to the side of a lesion
    sides: frozenset[Finding]  # that the clause names, stated or not
    site: Site
    reaches: tuple[tuple[int, tuple[str, ...]], ...]  # up to which character of the clause which sides reach


class Context(NamedTuple):
    """What the sentences before say of the next one."""

    topic: str | None = None
    sides: tuple[str, ...] = ()  # named last
    gland: Finding | None = None  # the side of the gland, if the last side was a gland's


class SentenceReading(NamedTuple):
    """What a sentence states in its context."""

    findings: frozenset[Finding]
    aspects: frozenset[Finding]
    sizes: frozenset[Measure]
    sites: tuple[Site, ...]  # of its lesions
    context: Context  # for the next sentence


class Sentence(NamedTuple):
    """The clauses of a sentence, without the context of others."""

    clauses: tuple[tuple[str, bool], ...]  # the text, and whether it is an item of a list that is denied
    lesions: int  # clauses with affirmed ones
    denies_lesion: bool


@dataclass
class Clause:
    """A clause in its context: its topic may come from its neighbours."""

    text: str
    look: Look
    all_denied: bool = False  # an item of a list that an earlier clause denies
    topic: str | None = None
    topic_of_sentence: str | None = None  # the topic, unless it comes from another sentence
    added: tuple[Match, ...] = ()  # the side that another clause names

    @property
    def lesions(self) -> tuple[Span, ...]:
        """Those that are not negated."""
        return () if self.all_denied else self.look.affirmed

    @property
    def own_topic(self) -> str | None:
        if self.lesions:
            return "lesion"
        if self.look.nodes:
            return "node"
        if self.look.removed and not self.look.lesions:
            return "surgery"
        if self.look.glands:
            return "gland"
        if self.look.lesions or self.look.normal:
            return "no lesion"
        return "other" if self.look.others else None

    def denies(self, match: Match) -> bool:
        return self.all_denied or self.look.denies(match.start, match.quality)

    def states(self, match: Match) -> bool:
        return self.denies(match) is match.if_denied and self.in_scope(match)

    def in_scope(self, match: Match) -> bool:
        if match.scope == "any":
            return True
        if match.scope == "tissue":
            return self.topic not in ("node", "other")
        if match.scope in ("flow", "gland flow"):
            return self._flow_of(match) == match.scope
        if match.scope != "gland":
            return self.topic == match.scope
        if not self.look.glands:
            return self.topic == "gland"
        if not self.lesions:
            return self.topic != "node"
        return _nearest(match, self.look.glands) < _nearest(match, self.lesions)

    def _flow_of(self, match: Match) -> str | None:
        """The scope of blood flow: `flow` of a lesion, `gland flow`, or None for that of a vessel or lymph node."""
        if self.lesions:
            of_gland = self.look.glands and _nearest(match, self.look.glands) < _nearest(match, self.lesions)
            return "gland flow" if of_gland else "flow"
        if self.look.glands:
            return "gland flow"
        topic = self.topic_of_sentence
        if self.look.others or self.look.nodes or topic in ("node", "other"):
            return None
        of_gland = topic in ("gland", "no lesion") or (self.look.organs and topic != "lesion")
        return "gland flow" if of_gland else "flow"


def _nearest(match: Match, spans: Sequence[Span]) -> int:
    """Distance in characters between the match and the nearest of `spans`."""
    return min(max(start - match.end, match.start - end, 0) for start, end in spans)


class _Places:
    """Finds the clauses of a report, which are in small letters and half width, in the report as it is written."""

    def __init__(self, text: str) -> None:
        read_as = [(place, sign) for place, each in enumerate(text) for sign in _squeezed(each)]
        self.text, self.place_of = "".join(sign for _, sign in read_as), [place for place, _ in read_as]
        self.clause, self.start, self.behind = "", -1, 0

    def enter(self, clause: str) -> None:
        """The next clause. Clauses come in their order."""
        written = _squeezed(clause)
        self.clause, self.start = clause, self.text.find(written, self.behind)
        if self.start >= 0:
            self.behind = self.start + len(written)

    def span(self, start: int, end: int) -> Span | None:
        """Where some words of the clause stand in the report. Of a clause that is read in other words, the next place
        where these words stand.
        """
        words = _squeezed(self.clause[start:end])
        if self.start >= 0:
            first = self.start + len(_squeezed(self.clause[:start]))
        else:
            first = self.text.find(words, self.behind)
        if not words or first < 0:
            return None
        return self.place_of[first], self.place_of[first + len(words) - 1] + 1


def _squeezed(text: str) -> str:
    """A text as the lexicon reads it, without blanks."""
    return "".join(text.lower().translate(HALF_WIDTH).split())


@dataclass(frozen=True)
class Rule:
    """One attribute: expressions of its values, and expressions that state them when negated."""

    attribute: str
    scope: str
    stated: Expression | None
    by_denial: Expression | None
    values: Mapping[str, str]  # group name to value


def _any_of(patterns: Sequence[str], where: str) -> Expression:
    try:
        return Expression("|".join(f"(?:{pattern})" for pattern in patterns))
    except re.error as error:
        raise ValueError(f"{LEXICON.name}: {where}: {error}") from None


def _grouped(values: Mapping[str, Any], key: str, where: str) -> Expression | None:
    """One regular expression with a group for each value; at equal starts the first wins."""
    groups = [
        f"(?P<v{number}>{'|'.join(forms[key])})" for number, forms in enumerate(values.values()) if forms.get(key)
    ]
    return _any_of(groups, where) if groups else None


class Reader:
    """The lexicon in one language."""

    def __init__(self, language: Language, lexicon: Mapping[str, Any]) -> None:
        self.language = language

        def listed(name: str) -> Expression:
            return _any_of(lexicon[name][language], f"{name}/{language}")

        self._denials = listed("denials")
        self._behind = listed("denials_behind")
        self._ends = listed("denial_ends")
        # None in Chinese, whose comma already ends the clause
        also = lexicon["denial_ends_of_qualities"][language]
        self._ends_of_qualities = listed("denial_ends_of_qualities") if also else None
        self._preface = listed("preface")
        self._removed = listed("removed")
        self._regions = listed("node_regions")
        self._node_signs = listed("node_signs")
        self._could_be_node = listed("could_be_node")
        self._node = lexicon["node"][language]
        self._elsewhere = listed("elsewhere")
        self._refers_back = listed("refers_back")
        self._refers_ahead = listed("refers_ahead")
        self._inside = listed("inside")
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
        of_rules = [each for rule in self._rules for each in (rule.stated, rule.by_denial)]
        every = [*vars(self).values(), *self._topics.values(), *of_rules]
        self._reads_digits = [each for each in every if isinstance(each, Expression) and each.reads_digits]
        # Reports repeat their clauses and sentences far more often than themselves.
        self._look = lru_cache(maxsize=REMEMBERED)(self._look_at)
        self._zeroed = lru_cache(maxsize=REMEMBERED)(self._with_zeros)
        self._look_of_words = lru_cache(maxsize=REMEMBERED)(self._look_at_words)
        self._place = lru_cache(maxsize=REMEMBERED)(self._place_of)
        self._sentence = lru_cache(maxsize=REMEMBERED)(self._sentence_of)
        self._stated = lru_cache(maxsize=REMEMBERED)(self._stated_of)
        self._sentence_reading = lru_cache(maxsize=REMEMBERED)(self._sentence_reading_of)

    def statements(self, text: str) -> list[Statement]:
        """Each finding of `text` with the words that state it, in their order; at last those that no words state."""
        sentences = self._cut(text)
        lesions = any(self._sentence(sentence).lesions for sentence in sentences)
        found: dict[tuple[str, str, str], Statement] = {}
        places, context = _Places(text), Context()
        for sentence in sentences:
            for clause in self._clauses(sentence, context, lesions):
                own = self._state(clause)
                rows: list[tuple[int, int, str, str, Size | None]] = [
                    (match.start, match.end, *match.finding, None)
                    for match in own.matches
                    if match.finding[1] != ANOTHER
                ]
                rows += [(size.start, size.end, "size", shown(size.finding[1]), size.finding[1]) for size in own.sizes]
                rows += [(*span, "lesion", "present", None) for span in _merged(clause.lesions)]
                if not lesions:
                    rows += [(*span, "lesion", "absent", None) for span in _merged(clause.look.lesions)]
                places.enter(clause.text)
                for start, end, attribute, value, size in sorted(rows, key=lambda row: row[:4]):
                    words = clause.text[start:end]
                    statement = Statement(attribute, value, words, places.span(start, end), size)
                    found.setdefault((attribute, value, words), statement)
            context = self._sentence_reading(sentence, context, lesions).context
        named = {(attribute, value) for attribute, value, _ in found}
        rest = sorted(finding for finding in self.read(text).findings if finding not in named)
        return [*found.values(), *(Statement(*finding, "", None, None) for finding in rest)]

    def read(self, text: str) -> Reading:
        """The findings of `text`."""
        sentences = self._cut(text)
        cut = [self._sentence(sentence) for sentence in sentences]
        lesions = sum([sentence.lesions for sentence in cut])
        read_sentences = []
        context = Context()
        for sentence in sentences:
            read_sentences.append(self._sentence_reading(sentence, context, lesions > 0))
            context = read_sentences[-1].context
        found = set().union(*[each.findings for each in read_sentences])
        if lesions:
            found.add(("lesion", "present"))
            one_more = ("count", ANOTHER) in found and lesions > 1
            both_sides = {("side", "left"), ("side", "right")} <= found
            if one_more or both_sides or _differ([site for each in read_sentences for site in each.sites]):
                found.add(("count", "multiple"))
            if ("count", "multiple") not in found:
                found.add(("count", "single"))
        elif any(sentence.denies_lesion for sentence in cut):
            found.add(("lesion", "absent"))
        found.discard(("count", ANOTHER))
        aspects = {("denial", name) for finding, name in DENIALS.items() if finding in found}
        return Reading(
            frozenset(found),
            frozenset(aspects.union(*[each.aspects for each in read_sentences])),
            frozenset().union(*[each.sizes for each in read_sentences]),
        )

    def _sentence_reading_of(self, sentence: str, context: Context, lesions: bool) -> SentenceReading:
        """What a sentence states.

        Args:
            lesions: whether the report affirms any.
        """
        clauses = self._clauses(sentence, context, lesions)
        if not clauses:
            return SentenceReading(frozenset(), frozenset(), frozenset(), (), context)
        stated = [self._state(clause) for clause in clauses]
        found = frozenset().union(*[own.findings for own in stated])
        of_sides: set[Finding] = set()
        sizes: set[Measure] = set()
        # A sentence that names its sides behind ("oval mass, 15 mm, left breast") means the first of them.
        current = next((own.reaches[0][1] for own in stated if own.reaches), context.sides)
        for own in stated:
            for (attribute, value), sides in _with_sides(own, current):
                if attribute == "size":
                    sizes |= {(side, value) for side in sides or (NO_SIDE,)}
                else:
                    of_sides |= {("side_of", f"{side} {attribute} {value}") for side in sides}
            if own.reaches:
                current = own.reaches[-1][1]
        gland = context.gland
        if named := frozenset().union(*[own.sides for own in stated]):
            gland = next(iter(named)) if clauses[-1].topic == "gland" and len(named) == 1 else None
        return SentenceReading(
            frozenset([finding for finding in found if finding[0] not in APART]),
            frozenset([finding for finding in found if finding[0] in APART]) | of_sides,
            frozenset(sizes),
            _sites(clauses, stated),
            Context(clauses[-1].topic, current, gland),
        )

    def _clauses(self, sentence: str, context: Context, lesions: bool) -> list[Clause]:
        """The clauses of a sentence in its context."""
        clauses = [Clause(text, self._look(text), denied) for text, denied in self._sentence(sentence).clauses]
        _settle_topics(clauses, context.topic, lesions)
        for number, clause in enumerate(clauses):
            if clause.look.inside and clause.lesions:
                clause.added = _put_inside(self._state(clause), clauses[:number])
        if context.gland and context.gland[1] != NO_SIDE and not any(self._state(clause).sides for clause in clauses):
            for clause in clauses:
                if clause.lesions and not clause.look.organs:
                    # "Right lobe: 4.6 x 1.4 cm. A cyst of 5 mm.": it is on the side of the gland named last.
                    clause.added += (Match(context.gland, "lesion", False, False, 0, 0),)
        return clauses

    def _state(self, clause: Clause) -> Stated:
        return self._stated(clause.text, clause.all_denied, clause.topic, clause.topic_of_sentence, clause.added)

    def _stated_of(
        self, text: str, all_denied: bool, topic: str | None, topic_of_sentence: str | None, added: tuple[Match, ...]
    ) -> Stated:
        clause = Clause(text, self._look(text), all_denied, topic, topic_of_sentence)
        matches = [*(match for match in clause.look.matches if clause.states(match)), *added]
        sizes = [size for size in clause.look.sizes if clause.states(size)]
        of_lesions = [match for match in matches if match.scope == "lesion" and match.finding[0] not in UNSIDED]
        of_lesions += [match for match in matches if match.scope == "tissue" and topic == "lesion"]
        site: dict[str, set[str]] = {}
        for match in matches:
            attribute, value = (_as_side(match) or match).finding
            if attribute in SITES and value not in DEPTHS:
                site.setdefault(attribute, set()).add(value)
        return Stated(
            tuple(matches),
            tuple(sizes),
            frozenset([match.finding for match in matches]),
            (*of_lesions, *sizes),
            frozenset([side.finding for match in clause.look.matches if (side := _as_side(match))]),
            site,
            tuple(self._reaches(text, [side for match in matches if (side := _as_side(match))])),
        )

    def _reaches(self, clause: str, named: Sequence[Match]) -> list[tuple[int, tuple[str, ...]]]:
        """The sides of a clause up to which character: all of it if it names one."""
        groups: list[tuple[int, int, set[str]]] = []
        for match in sorted(named, key=lambda match: match.start):
            if groups and (match.start in groups[-1][:2] or groups[-1][2] == {match.finding[1]}):
                groups[-1] = (groups[-1][0], match.end, groups[-1][2] | {match.finding[1]})
            else:
                groups.append((match.start, match.end, {match.finding[1]}))
        reaches = []
        for (_, end, sides), following in pairwise(groups):
            joint = max(
                (found.start() for found in JOINTS[self.language].finditer(clause, end, following[0])), default=0
            )
            reaches.append((joint or following[0], tuple(sorted(sides))))
        if groups:
            every = tuple(dict.fromkeys(side for _, _, sides in groups for side in sorted(sides)))
            each = OF_EACH.search(clause, groups[-1][1]) if self.language == "zh" and len(groups) > 1 else None
            if each:
                reaches.append((each.start(), tuple(sorted(groups[-1][2]))))
            reaches.append((len(clause) + 1, every if each else tuple(sorted(groups[-1][2]))))
        return reaches

    def _look_at(self, clause: str) -> Look:
        look = self._look_of_words(self._zeroed(clause))
        numbers = [Match((name, value), "lesion", True, False, *span) for name, value, *span in numbers_of(clause)]
        if not numbers:
            return look
        others = (match for match in numbers if match.finding[0] != "size")
        sizes = (match for match in numbers if match.finding[0] == "size")
        return look._replace(matches=(*look.matches, *others), sizes=tuple(sizes))

    def _with_zeros(self, clause: str) -> str:
        """The clause with zeros for digits, so that clauses which differ in a diameter are read once.

        The clause itself if an expression does not match both alike, as those of categories.
        """
        zeroed = DIGIT.sub("0", clause)
        for each in self._reads_digits:
            if (each.may_match(clause) or each.may_match(zeroed)) and each.places(clause) != each.places(zeroed):
                return clause
        return zeroed

    def _look_at_words(self, clause: str) -> Look:
        """Properties of a clause without its numbers."""
        denied, qualities = self._denied(clause)
        removed = self._removed.spans(clause)
        lesions = _outside(removed, self._topics["lesion"].spans(clause))
        return Look(
            lesions=lesions,
            affirmed=_outside(denied, lesions),
            removed=removed,
            glands=self._topics["gland"].spans(clause),
            organs=self._topics["organ"].found_in(clause),
            others=self._topics["other"].found_in(clause),
            nodes=self._topics["node"].found_in(clause),
            refers_back=self._refers_back.begins(clause),
            refers_ahead=self._refers_ahead.begins(clause),
            inside=self._inside.begins(clause),
            normal=self._topics["normal"].found_in(clause),
            denied=denied,
            denied_qualities=qualities,
            open_denial=any(end > len(clause) for _, end in denied),
            matches=tuple(self._matches(clause)),
            sizes=(),
        )

    def _matches(self, clause: str) -> Iterator[Match]:
        for rule in self._rules:
            for pattern, if_denied in ((rule.stated, False), (rule.by_denial, True)):
                for match in pattern.finditer(clause) if pattern else ():
                    for value in rule.values[str(match.lastgroup)].split(" + "):
                        finding = rule.attribute, value
                        if value == NOTHING:
                            continue
                        yield Match(finding, rule.scope, rule.by_denial is None, if_denied, *match.span())

    def _denied(self, clause: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        """Negated spans of findings and of qualities: from a negation to its end, or back from a `not seen`."""
        denials, behind = self._denials.spans(clause), self._behind.spans(clause)
        if not denials and not behind:
            return (), ()
        stops = [end for _, end in self._ends.spans(clause)]
        also = self._ends_of_qualities.spans(clause) if self._ends_of_qualities else ()
        denied = _reaches_of(denials, behind, stops, len(clause))
        return denied, _reaches_of(
            denials, behind, [*stops, *(end for _, end in also)], len(clause)
        ) if also else denied

    def _cut(self, text: str) -> list[str]:
        """The sentences of a report."""
        text = self._preface.replace(text.lower().translate(HALF_WIDTH), "")
        if self.language == "zh":
            text = joined("".join(text.split()))
        return SENTENCES[self.language].split(text)

    def _sentence_of(self, sentence: str) -> Sentence:
        parts = [" ".join(part.split()) for part in CLAUSES[self.language].split(sentence)]
        parts = [part for part in parts if part]
        if self.language == "en":
            parts = self._join_adjectives(parts)
        clauses = [Clause(part, self._look(part)) for part in self._by_place(parts)]
        if self.language == "en":
            _spread_denials(clauses)
        return Sentence(
            tuple((clause.text, clause.all_denied) for clause in clauses),
            sum(bool(clause.lesions) for clause in clauses),
            any(clause.look.lesions or clause.look.normal for clause in clauses),
        )

    def _by_place(self, parts: list[str]) -> list[str]:
        """The clauses of a sentence, with a nodule of the armpit or neck, or one with a hilum, as a lymph node.

        A lesion of another organ is left out.
        """
        places = [self._place(self._zeroed(part)) for part in parts]
        of_nodes, region = [], False
        for place in places:
            region = not place.organ and (region or place.node_region)
            of_nodes.append(region)
        for number, place in enumerate(places):
            if place.node_sign:
                for before in range(number, -1, -1):
                    if places[before].organ:
                        break
                    of_nodes[before] = True
        read_as, elsewhere = [], False
        for part, place, node in zip(parts, places, of_nodes):
            elsewhere = not place.organ and (elsewhere or place.elsewhere)
            if node:
                part = self._could_be_node.replace(part, self._node)
            elif elsewhere:
                part = self._topics["lesion"].replace(part, "")
            read_as.append(part)
        return read_as

    def _place_of(self, clause: str) -> Place:
        patterns = self._topics["organ"], self._regions, self._node_signs, self._elsewhere
        return Place(*(pattern.found_in(clause) for pattern in patterns))

    def _join_adjectives(self, parts: list[str]) -> list[str]:
        joined: list[str] = []
        for part in reversed(parts):
            before = self._adjectives.match(joined[-1]) if joined else None
            if before and not NOT_ADJECTIVES.search(before.group()):
                joined[-1] = f"{part}, {joined[-1]}"
            else:
                joined.append(part)
        return joined[::-1]


def _as_side(match: Match) -> Match | None:
    """The match if it names a side; the isthmus is none."""
    if match.finding == ("place", "isthmus"):
        return match._replace(finding=("side", NO_SIDE))
    return match if match.finding[0] == "side" else None


def _with_sides(stated: Stated, current: tuple[str, ...]) -> Iterator[tuple[tuple[str, Any], tuple[str, ...]]]:
    """Findings of lesions by side: the sides that the clause names, or the current ones."""
    for match in stated.of_lesions:
        sides = current
        for end, named in stated.reaches:
            if match.start < end:
                sides = named
                break
        if len(stated.sizes) > 1 and len(sides) == len(stated.sizes) and match in stated.sizes:
            sides = (sides[stated.sizes.index(match)],)  # "at 2 o'clock left and 6 o'clock right, 5 mm, 7 mm"
        yield match.finding, tuple([side for side in sides if side != NO_SIDE])


def _sites(clauses: Sequence[Clause], stated: Sequence[Stated]) -> tuple[Site, ...]:
    """The sites of the lesions of a sentence. All of its clauses give the site of its only lesion."""
    named = [own.site for clause, own in zip(clauses, stated) if clause.lesions and not clause.look.refers_back]
    if len(named) == 1 and sum([bool(clause.lesions) for clause in clauses]) == 1:
        sites = [own.site for own in stated]
        return ({name: set().union(*[site.get(name, ()) for site in sites]) for name in set().union(*sites)},)
    return tuple(named)


def _differ(sites: Sequence[Site]) -> bool:
    """Whether two lesions lie at different sites: `上段见一囊肿，下段见一结节`."""
    return any(
        values.isdisjoint(other.get(name, values))
        for one, other in combinations(sites, 2)
        for name, values in one.items()
    )


def _put_inside(stated: Stated, before: Sequence[Clause]) -> tuple[Match, ...]:
    """`甲状腺右叶大小约..., 其内见一结节`: the lesion is on the side of what it is inside of.

    Args:
        stated: by the clause itself.
        before: the clauses before it.
    """
    for clause in reversed(before):
        site = [match for match in clause.look.matches if match.finding[0] in SITES and not clause.denies(match)]
        if any(match.finding[0] == "side" for match in site):
            own = {match.finding[0] for match in stated.matches}
            # At the start of the clause, so that its findings belong to these sides.
            return tuple(match._replace(start=0, end=0) for match in site if match.finding[0] not in own)
    return ()


def _settle_topics(clauses: Sequence[Clause], last: str | None, lesions: bool) -> None:
    """A clause without a topic takes that of the previous clause, or of the next one at the start of a sentence.

    Args:
        last: the topic of the sentence before.
        lesions: whether the report affirms any.
    """
    here: str | None = None
    for number, clause in enumerate(clauses):
        topic = clause.own_topic
        if topic == "other" and last == "lesion" and number:
            topic = None  # a vessel that enters a lesion
        if topic in (None, "gland") and last and clause.look.refers_back:
            topic = last
        elif (topic is None and not number and not clause.look.denied) or (
            topic == "gland" and clause.look.refers_ahead
        ):
            topic = next((later.own_topic for later in clauses[number + 1 :] if later.own_topic), topic)
        here = topic or here
        clause.topic_of_sentence, clause.topic = here, topic or last
        last = clause.topic
    if not lesions:
        for clause in clauses:
            # "The thyroid is small. Vascularity is not increased.": that of the gland, as there is no lesion
            if any(match.finding[0] == "gland_flow" for match in clause.look.matches):
                clause.topic_of_sentence = clause.topic_of_sentence or clause.topic


def _spread_denials(clauses: Sequence[Clause]) -> None:
    """`no nodule, cyst, or calcification`: the negation extends to the end of the list."""
    for number, clause in enumerate(clauses):
        if not ALTERNATIVE.match(clause.text):
            continue
        items = [clause]
        for before in reversed(clauses[:number]):
            if before.look.open_denial:
                for item in items:
                    item.all_denied = True
                break
            if len(before.text.split()) > LISTED_WORDS:
                break
            items.append(before)


def _outside(others: Sequence[Span], spans: Sequence[Span]) -> tuple[Span, ...]:
    """The spans that do not start within one of `others`."""
    return tuple(span for span in spans if not any(start <= span[0] < end for start, end in others))


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Spans that touch, such as those of `低回声` and `结节`, as one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _reaches_of(denials: Sequence[Span], behind: Sequence[Span], stops: Sequence[int], length: int) -> tuple[Span, ...]:
    """What negations deny up to the next of `stops`, those of `behind` back to the last one."""
    reach = [(max((stop for stop in stops if stop <= start), default=0), start) for start, _ in behind]
    for start, end in denials:
        if not any(first <= start < last for first, last in behind):
            reach.append((end, min((stop for stop in stops if stop > end), default=length + 1)))
    return tuple(reach)


@cache
def _lexicon() -> Any:
    return yaml.safe_load(LEXICON.read_text(encoding="utf-8"))


@cache
def _readers() -> dict[str, Reader]:
    return {"en": Reader("en", _lexicon()), "zh": Reader("zh", _lexicon())}


@cache
def attributes() -> tuple[str, ...]:
    """The attributes of the overall F1, in alphabetical order."""
    return tuple(sorted({"lesion", "count", *_lexicon()["attributes"]} - APART))


@cache
def categories() -> dict[str, tuple[str, ...]]:
    """The attributes whose values are numbered categories, with these values from low to high."""
    return {
        name: tuple(entry["values"])
        for name, entry in _lexicon()["attributes"].items()
        if all(value[0].isdigit() for value in entry["values"])
    }


def read(text: str) -> frozenset[Finding]:
    """The findings of a report as (attribute, value)."""
    return read_all(text).findings


@lru_cache(maxsize=REMEMBERED)
def read_all(text: str) -> Reading:
    """What a report states."""
    return _readers()[_language(text)].read(text)


def _language(text: str) -> Language:
    """Chinese where there are as many Chinese characters as Latin words, so that `BI-RADS 3类` is."""
    chinese = len(CJK.findall(text))
    return "zh" if chinese and chinese >= len(LATIN_WORD.findall(text)) else "en"


@lru_cache(maxsize=REMEMBERED)
def statements(text: str) -> tuple[Statement, ...]:
    """Each finding of a report with the words that state it."""
    return tuple(_readers()[_language(text)].statements(text))


def explain(text: str) -> list[tuple[str, str]]:
    """Each finding of a report as `attribute: value`, and the words that state it."""
    return [(f"{each.attribute}: {each.value}", each.words) for each in statements(text)]
