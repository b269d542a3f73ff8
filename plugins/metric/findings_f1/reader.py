"""Extracts the findings of a report as (attribute, value) by the rules of lexicon.yaml.

A report is split into sentences and clauses. The topic of each clause is a lesion, the gland, lymph nodes, surgery or
another structure: from its own words, or from its neighbours. A nodule of the armpit or neck is a lymph node, and what
lies in another organ is left out. Each attribute is searched in clauses of its scope, and a value counts unless a
negation ("no", 未见) precedes it in the clause. A finding of a lesion belongs to the side that its clause names, or to
the last named one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from plugins.metric.findings_f1.numbers import Size, joined, numbers_of, shown

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
NOTHING = "-"  # a value of the lexicon that takes words away from the other values
ANOTHER = "another"  # a count that depends on the other clauses
SITES = ("side", "place", "clock", "segment")  # lesions that differ in one of these are two
DEPTHS = frozenset({"superficial", "central depth", "deep", "retroareolar"})  # beside any other place
NO_SIDE = ""  # of the isthmus
OF_EACH = re.compile("[各均都]|分别")  # "at 2 o'clock left and 6 o'clock right, each ...": what follows is of all sides

# Full-width letters, digits and signs as the ASCII ones, and one sign for each dash; commas and points keep their own.
HALF_WIDTH = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
HALF_WIDTH |= str.maketrans("．＊－—–‐‑―／＞＜＋％", ".*------/><+%")

CJK = re.compile(r"[\u3400-\u9fff]")
LATIN_WORD = re.compile(r"[a-zA-Z][a-zA-Z-]+")
# "Rt. lobe", "L. breast": a point behind such a letter ends no sentence.
SHORT_SIDE = (
    r"(?<!\b[lr]t\.(?=\s?(?:breast|lobe|thyroid|axilla)\b))(?<!\b[lr]\.(?=\s?(?:breast|lobe|thyroid|axilla)\b))"
)
# A point or comma within a number is no end of anything.
SENTENCES = {"en": re.compile(rf"[!?;\n]|\.(?!\d){SHORT_SIDE}"), "zh": re.compile(r"[。；！？;!?\n]|\.(?!\d)")}
CLAUSES = {"en": re.compile(r",(?!\d)|(?<=ectomy):"), "zh": re.compile(r"，|,(?!\d)|(?<=[后查年月周])[：:]")}
ALTERNATIVE = re.compile(r"^(?:[\w-]+ ){0,2}(?:and/or|or|nor)\b")
LISTED_WORDS = 5  # "no nodule, thick-walled cyst, or calcification": as long as an item of such a list may be
# "oval, hypoechoic mass": the comma of adjectives, not of clauses.
ADJECTIVES = (
    r"^(?!(?:an?|the|no|with|without|and|or|in|at|multiple|several)\b)(?:(?:[\w-]+|[\w-]+ and [\w-]+),? ){0,4}?"
)
NOT_ADJECTIVES = re.compile(r"\b(?:an?|the|no|with|without|is|are|in|of|there|or|not|shows?|seen|measuring)\b")


Span = tuple[int, int]


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


class Place(NamedTuple):
    """Which places a clause names: the organ, where lymph nodes are, signs of a node, another organ."""

    organ: bool
    node_region: bool
    node_sign: bool
    elsewhere: bool


@dataclass(frozen=True)
class Look:
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


@dataclass
class Clause:
    """A clause in its context: its topic may come from its neighbours."""

    text: str
    sentence: int
    look: Look
    all_denied: bool = False  # an item of a list that an earlier clause denies
    topic: str | None = None
    topic_of_sentence: str | None = None  # the topic, unless it comes from another sentence

    def denies(self, match: Match) -> bool:
        return self.all_denied or self.look.denies(match.start, match.quality)

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


@dataclass(frozen=True)
class Rule:
    """One attribute: expressions of its values, and expressions that state them when negated."""

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
    """One regular expression with a group for each value; at equal starts the first wins."""
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
        # Reports repeat their clauses far more often than themselves; a clause seen before costs a tenth.
        self._look = lru_cache(maxsize=16384)(self._look_at)
        self._place = lru_cache(maxsize=16384)(self._place_of)

    def explain(self, text: str) -> list[tuple[str, str]]:
        """Each finding of `text` and the words that state it, in their order; counted ones have none."""
        clauses, stated = self._stated(text)
        reading = self.read(text)
        lines: dict[tuple[str, str], None] = {}
        for clause, matches in zip(clauses, stated):
            sizes = [size for size in clause.look.sizes if clause.states(size)]
            found = [
                (match.start, match.end, ": ".join(match.finding)) for match in matches if match.finding[1] != ANOTHER
            ]
            found += [(size.start, size.end, f"size: {shown(size.finding[1])}") for size in sizes]
            found += [(*span, "lesion: present") for span in _merged(clause.lesions)]
            if not any(each.lesions for each in clauses):
                found += [(*span, "lesion: absent") for span in _merged(clause.look.lesions)]
            lines |= {(name, clause.text[start:end]): None for start, end, name in sorted(found)}
        named = {name for name, _ in lines}
        return [*lines, *((name, "") for name in sorted(map(": ".join, reading.findings)) if name not in named)]

    def _stated(self, text: str) -> tuple[list[Clause], list[list[Match]]]:
        """The clauses and what each of them states."""
        clauses = self._cut(text)
        if self.language == "en":
            _spread_denials(clauses)
        _settle_topics(clauses)
        stated = [[match for match in clause.look.matches if clause.states(match)] for clause in clauses]
        _put_inside(clauses, stated)
        _put_below(clauses, stated)
        return clauses, stated

    def read(self, text: str) -> Reading:
        """The findings of `text`."""
        clauses, stated = self._stated(text)
        found = {match.finding for matches in stated for match in matches if match.finding[0] not in APART}
        if any(clause.lesions for clause in clauses):
            found.add(("lesion", "present"))
            one_more = ("count", ANOTHER) in found and sum(bool(clause.lesions) for clause in clauses) > 1
            if one_more or {("side", "left"), ("side", "right")} <= found or _at_different_sites(clauses, stated):
                found.add(("count", "multiple"))
            if ("count", "multiple") not in found:
                found.add(("count", "single"))
        elif any(clause.look.lesions or clause.look.normal for clause in clauses):
            found.add(("lesion", "absent"))
        found.discard(("count", ANOTHER))
        aspects = {match.finding for matches in stated for match in matches if match.finding[0] in APART}
        aspects |= {("denial", name) for finding, name in DENIALS.items() if finding in found}
        sizes = set()
        for match, sides in self._with_sides(clauses, stated):
            attribute, value = match.finding
            if attribute == "size":
                sizes |= {(side, value) for side in sides or (NO_SIDE,)}
            else:
                aspects |= {("side_of", f"{side} {attribute} {value}") for side in sides}
        return Reading(frozenset(found), frozenset(aspects), frozenset(sizes))

    def _with_sides(
        self, clauses: Sequence[Clause], stated: Sequence[Sequence[Match]]
    ) -> Iterator[tuple[Match, tuple[str, ...]]]:
        """Findings of lesions by side: the sides that a clause names, or the last named ones.

        A sentence that names them behind ("oval mass, 15 mm, left breast") means the first of them.
        """
        every = [
            self._reaches(clause.text, [match for each in matches if (match := _as_side(each))])
            for clause, matches in zip(clauses, stated)
        ]
        first: dict[int, tuple[str, ...]] = {}
        for clause, reaches in zip(clauses, every):
            if reaches:
                first.setdefault(clause.sentence, reaches[0][1])
        current: tuple[str, ...] = ()
        sentence = -1
        for clause, matches, reaches in zip(clauses, stated, every):
            if clause.sentence != sentence:
                sentence, current = clause.sentence, first.get(clause.sentence, current)
            of_lesions = [match for match in matches if match.scope == "lesion" and match.finding[0] not in UNSIDED]
            of_lesions += [match for match in matches if match.scope == "tissue" and clause.topic == "lesion"]
            sizes = [size for size in clause.look.sizes if clause.states(size)]
            for match in [*of_lesions, *sizes]:
                sides = next((sides for end, sides in reaches if match.start < end), current)
                if match in sizes and len(sides) == len(sizes) > 1:
                    sides = (sides[sizes.index(match)],)  # "at 2 o'clock left and 6 o'clock right, 5 mm, 7 mm"
                yield match, tuple(side for side in sides if side != NO_SIDE)
            if reaches:
                current = reaches[-1][1]

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
        denied = self._denied(clause, self._ends.finditer(clause))
        qualities = denied
        if denied and self._ends_of_qualities:
            qualities = self._denied(clause, [*self._ends.finditer(clause), *self._ends_of_qualities.finditer(clause)])
        numbers = tuple(_numbers(clause))
        removed = _spans(self._removed, clause)
        lesions = _outside(removed, _spans(self._topics["lesion"], clause))
        return Look(
            lesions=lesions,
            affirmed=_outside(denied, lesions),
            removed=removed,
            glands=_spans(self._topics["gland"], clause),
            organs=self._topics["organ"].search(clause) is not None,
            others=self._topics["other"].search(clause) is not None,
            nodes=self._topics["node"].search(clause) is not None,
            refers_back=self._refers_back.match(clause) is not None,
            refers_ahead=self._refers_ahead.match(clause) is not None,
            inside=self._inside.match(clause) is not None,
            normal=self._topics["normal"].search(clause) is not None,
            denied=denied,
            denied_qualities=qualities,
            open_denial=any(end > len(clause) for _, end in denied),
            matches=(*self._matches(clause), *(match for match in numbers if match.finding[0] != "size")),
            sizes=tuple(match for match in numbers if match.finding[0] == "size"),
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

    def _denied(self, clause: str, ends: Iterable[re.Match[str]]) -> tuple[Span, ...]:
        """Negated spans: from a negation to its end, or back from a `not seen`."""
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
        text = self._preface.sub("", text.lower().translate(HALF_WIDTH))
        if self.language == "zh":
            text = joined("".join(text.split()))
        clauses = []
        for number, sentence in enumerate(SENTENCES[self.language].split(text)):
            parts = [" ".join(part.split()) for part in CLAUSES[self.language].split(sentence)]
            parts = [part for part in parts if part]
            if self.language == "en":
                parts = self._join_adjectives(parts)
            parts = self._by_place(parts)
            clauses += [Clause(part, number, self._look(part)) for part in parts]
        return clauses

    def _by_place(self, parts: list[str]) -> list[str]:
        """The clauses of a sentence, with a nodule of the armpit or neck, or one with a hilum, as a lymph node.

        A lesion of another organ is left out.
        """
        places = [self._place(part) for part in parts]
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
                part = self._could_be_node.sub(self._node, part)
            elif elsewhere:
                part = self._topics["lesion"].sub("", part)
            read_as.append(part)
        return read_as

    def _place_of(self, clause: str) -> Place:
        patterns = self._topics["organ"], self._regions, self._node_signs, self._elsewhere
        return Place(*(pattern.search(clause) is not None for pattern in patterns))

    def _join_adjectives(self, parts: list[str]) -> list[str]:
        joined: list[str] = []
        for part in reversed(parts):
            before = self._adjectives.match(joined[-1]) if joined else None
            if before and not NOT_ADJECTIVES.search(before.group()):
                joined[-1] = f"{part}, {joined[-1]}"
            else:
                joined.append(part)
        return joined[::-1]


def _numbers(clause: str) -> Iterator[Match]:
    for attribute, value, start, end in numbers_of(clause):
        yield Match((attribute, value), "lesion", True, False, start, end)


def _as_side(match: Match) -> Match | None:
    """The match if it names a side; the isthmus is none."""
    if match.finding == ("place", "isthmus"):
        return match._replace(finding=("side", NO_SIDE))
    return match if match.finding[0] == "side" else None


def _at_different_sites(clauses: Sequence[Clause], stated: Sequence[Sequence[Match]]) -> bool:
    """Whether two clauses name lesions at different sites: `上段见一囊肿，下段见一结节`.

    All clauses of a sentence give the site of its only lesion.
    """
    lesions = Counter(clause.sentence for clause in clauses if clause.lesions)
    sites: list[dict[str, set[str]]] = []
    for clause, matches in zip(clauses, stated):
        if not clause.lesions or clause.look.refers_back:
            continue
        if lesions[clause.sentence] == 1:
            matches = [match for each, own in zip(clauses, stated) if each.sentence == clause.sentence for match in own]
        site: dict[str, set[str]] = {}
        for match in matches:
            attribute, value = (_as_side(match) or match).finding
            if attribute in SITES and value not in DEPTHS:
                site.setdefault(attribute, set()).add(value)
        if any(values.isdisjoint(other.get(name, values)) for other in sites for name, values in site.items()):
            return True
        sites.append(site)
    return False


def _put_inside(clauses: Sequence[Clause], stated: Sequence[list[Match]]) -> None:
    """`甲状腺右叶大小约..., 其内见一结节`: the lesion is on the side of what it is inside of."""
    for number, clause in enumerate(clauses):
        if not (clause.look.inside and clause.lesions):
            continue
        for before in reversed(clauses[:number]):
            if before.sentence != clause.sentence:
                break
            site = [match for match in before.look.matches if match.finding[0] in SITES and not before.denies(match)]
            if any(match.finding[0] == "side" for match in site):
                # At the start of the clause, so that its findings belong to these sides.
                own = {match.finding[0] for match in stated[number]}
                stated[number].extend(match._replace(start=0, end=0) for match in site if match.finding[0] not in own)
                break


def _put_below(clauses: Sequence[Clause], stated: Sequence[list[Match]]) -> None:
    """`Right lobe: 4.6 x 1.4 cm. A cyst of 5 mm.`: the lesion is on the side of the gland named last."""
    named: dict[int, set[Finding]] = {}
    for clause in clauses:
        named.setdefault(clause.sentence, set()).update(
            side.finding for match in clause.look.matches if (side := _as_side(match))
        )
    above: Finding | None = None
    for clause, matches in zip(clauses, stated):
        if sides := named[clause.sentence]:
            above = next(iter(sides)) if clause.topic == "gland" and len(sides) == 1 else None
        elif above and above[1] != NO_SIDE and clause.lesions and not clause.look.organs:
            matches.append(Match(above, "lesion", False, False, 0, 0))


def _settle_topics(clauses: Sequence[Clause]) -> None:
    """A clause without a topic takes that of the previous clause, or of the next one at the start of a sentence."""
    last: str | None = None
    for number, clause in enumerate(clauses):
        topic = clause.own_topic
        first = number == 0 or clauses[number - 1].sentence != clause.sentence
        if topic == "other" and last == "lesion" and not first:
            topic = None  # a vessel that enters a lesion
        if topic in (None, "gland") and last and clause.look.refers_back:
            topic = last
        elif (topic is None and first and not clause.look.denied) or (topic == "gland" and clause.look.refers_ahead):
            ahead = (later.own_topic for later in clauses[number + 1 :] if later.sentence == clause.sentence)
            topic = next((later for later in ahead if later), topic)
        here = topic or (None if first else clauses[number - 1].topic_of_sentence)
        clause.topic_of_sentence, clause.topic = here, topic or last
        last = clause.topic
    if not any(clause.lesions for clause in clauses):
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
            if before.sentence != clause.sentence:
                break
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
    """The attributes of the overall F1, in alphabetical order."""
    return tuple(sorted({"lesion", "count", *_lexicon()["attributes"]} - APART))


def read(text: str) -> frozenset[Finding]:
    """The findings of a report as (attribute, value)."""
    return read_all(text).findings


@lru_cache(maxsize=16384)
def read_all(text: str) -> Reading:
    """What a report states."""
    return _readers()[_language(text)].read(text)


def _language(text: str) -> Language:
    """Chinese where there are as many Chinese characters as Latin words, so that `BI-RADS 3类` is."""
    chinese = len(CJK.findall(text))
    return "zh" if chinese and chinese >= len(LATIN_WORD.findall(text)) else "en"


def explain(text: str) -> list[tuple[str, str]]:
    """Each finding of a report as `attribute: value`, and the words that state it."""
    return _readers()[_language(text)].explain(text)
