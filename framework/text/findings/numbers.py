"""Reads the numbers of a clause: diameters, clock positions, liver segments; and compares diameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

# Tolerance of equal measures: below the growth of ACR TI-RADS.
SHARE, LEAST_MM = 0.2, 2.0

NUMBER = r"\d{1,3}(?:\.\d+|,\d{1,2}(?!\d))?"  # some countries write 1,2 for 1.2
UNIT = r"mm|cm|毫米|厘米|㎝|㎜|millimet(?:er|re)s?|centimet(?:er|re)s?"
CENTIMETRES = re.compile(r"cm|厘米|㎝|centi")
TIMES = r"\s?(?:[x×*✕]|by)\s?"
ONE = rf"{NUMBER}(?:[\s-]?(?:{UNIT}))?"
# "12 mm (AP) x 8 mm (TR)": the direction of a diameter, behind it
AXIS = (
    r"(?:\s?\(?\b(?:ap|tr|tv|cc|si|ml|[lwhd]|length|width|height|depth|trans(?:verse)?|long(?:itudinal)?|sag(?:ittal)?"
    r"|cranio-?caudal|antero-?posterior)\b\)?)?"
)
BEGIN, END = r"(?<![\d.a-z_#])", r"(?![\d.%]\d|\d|%|[a-z]|\s?/\s?(?:s|秒))"
DIAMETERS = re.compile(rf"{BEGIN}{ONE}(?:{AXIS}{TIMES}{ONE}){{0,2}}{END}")
# "12mm，前后径8mm": a further diameter of the same lesion, given with its direction
FURTHER = re.compile(
    rf"(?<=[\dm米㎝㎜])[，,、；]?(?:(?:前后|上下|左右|横|纵|厚|长|短|宽|高)径|[宽厚])(?:约|为)*(?={NUMBER}[\s-]?(?:{UNIT}))"
)
# "5 and 6 mm": the unit behind holds for both
SAME_UNIT = re.compile(rf"\s?(?:and|及|和|、)\s?{NUMBER}[\s-]?({UNIT}){END}")
NAMED = re.compile(r"(?:rads|\btr|segments?|levels?|grade|category|类)[\s:-]*$")  # "BI-RADS 3 and 6 mm": no length
DIAMETER = re.compile(rf"({NUMBER})[\s-]?({UNIT})?")
MASKED_SIZE = re.compile(r"_(?:2ds|3ds|scm|smm)_")
# Numbers with a unit that are no diameters of a lesion, by what stands before or behind them.
ABOUT = r"(?: (?:is|measur\w+|about|approximately|of)){0,2}:? ?$"
PLACES = r"(?:skin|nipple|areola|chest wall|pectoral\w*(?: muscle)?|surface|capsule)"
NO_SIZE_BEFORE = re.compile(
    r"(?:距|离|皮下)[^，,。大见及]{0,8}$|(?:内径|厚度?|深度?|斜径|导管(?:[最较]?宽[处度]?)?|管径|流速|^其?[最较]?宽[处度]?)(?:约|为)?$"
    r"|(?:叶|腺体?|肝脏|峡部|乳腺组织)(?:大小|范围|厚)(?:约|为)?$"
    r"|(?:原|既往|[前上]次|较前)(?:检查|大小|范围|测值|[(（:：约为])*$|[从由](?:原来的?)?(?:约)?$|[疗术]前(?:大小|约|为)*$"
    r"|\blobes? \($|\bn ?\+ ?$|\(was ?$|\bcompared (?:to|with) ?$|\b(?:vs\.?|versus) ?$"
    rf"|\bdistance (?:to|from) (?:the )?{PLACES}{ABOUT}|\b(?:thick(?:ness|ening)|ducts?){ABOUT}"
    r"|\b(?:grown|grew|increased|decreased|enlarged|changed)(?: in size)? from ?$"
    rf"|\b(?:previous(?:ly)?|prior|formerly)(?: (?:size|measurement|exam(?:ination)?|study))?{ABOUT}"
    r"|\b(?:increased?|decreased?|grown|grew|shrunk|enlarged)(?: in size)? by(?: about| approximately)? ?$"
    r"|\b(?:depth of|distance of|under|below|less than)(?: measur\w+)?(?: about| approximately)? ?$"
)
BEFORE = 60  # characters: more than any of these takes
ORGAN = re.compile(
    r"(?:(?!in |of |at )\w+ ){0,3}(?:lobe|gland|liver|spleen|isthmus|duct) (?:measures?|measuring|is|spans)"
    r"(?: about| approximately)? ?"
)
NO_SIZE_BEHIND = re.compile(
    r"\s?(?:处|from\b|fn\b|deep\b|(?:in )?(?:thick|depth)|below\b|beneath\b|previously\b|before\b"
    r"|(?:on|at|in) (?:the )?(?:prior|previous|last)\b"
    r"|(?:larger|smaller|bigger|longer|shorter|more|less|increase|decrease)\b)"
)

HOUR = r"(?:1[0-2]|[1-9])"
HOURS = re.compile(
    rf"(?<![\d.×x])({HOUR})(?::[0-5]\d)?(?:\s?(?:-|–|~|～|至|to|、)\s?({HOUR}))?(?::[0-5]\d)?\s?(?:o'?\s?clock|o’clock|点(?!状))"
)
TIME = re.compile(rf"(?<![\d.×x:])({HOUR}):[0-5]\d(?!\d)(?!\s?o.?\s?clock)")
MASKED_HOUR = re.compile(r"_locr?_")

ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6, "vii": 7, "viii": 8}
ROMAN |= {sign: number for number, sign in enumerate("ⅰⅱⅲⅳⅴⅵⅶⅷ", 1)}
SEGMENT = r"(?:[1-8][ab]?|viii|vii|vi|iv[ab]?|v|iii|ii|i|[ⅰⅱⅲⅳⅴⅵⅶⅷ])"
SEGMENTS = re.compile(
    rf"\bseg(?:ment)?s?\.? ({SEGMENT})(?:\s?(?:/|-|and|,)\s?({SEGMENT}))?(?![a-z\d])"
    rf"|(?<![a-z])s({SEGMENT})(?:[/、-]s?({SEGMENT}))?(?![a-z\d])"
    rf"|(?<![a-z\d.])s?({SEGMENT})(?:[/、及和与至~～-]({SEGMENT}))?段"
)
Size = tuple[float, ...] | str  # diameters in mm, the longest first; or the mask that stands for them


class Number(NamedTuple):
    """A number of a clause, and where it stands."""

    attribute: str
    value: Size
    start: int
    end: int


def numbers_of(clause: str) -> Iterator[Number]:
    """All numbers of a lowercase clause."""
    for match in MASKED_SIZE.finditer(clause):
        before = clause[max(0, match.start() - BEFORE) : match.start()]
        if not NO_SIZE_BEFORE.search(before) and not NO_SIZE_BEHIND.match(clause, match.end()):
            yield Number("size", match.group(), *match.span())
    organ = ORGAN.match(clause)
    for match in DIAMETERS.finditer(clause):
        start, end = match.span()
        if organ and organ.end() == start:
            continue
        before = clause[max(0, start - BEFORE) : start]
        same = None if NAMED.search(before) else SAME_UNIT.match(clause, end)
        size = _millimetres(match.group() + same.group(1) if same else match.group())
        if size and not NO_SIZE_BEFORE.search(before) and not NO_SIZE_BEHIND.match(clause, end):
            yield Number("size", size, start, end)
    for match in HOURS.finditer(clause):
        for hour in filter(None, match.groups()):
            yield Number("clock", hour, *match.span())
    for match in TIME.finditer(clause):
        yield Number("clock", match.group(1), *match.span())
    for match in MASKED_HOUR.finditer(clause):
        yield Number("clock", "_loc_", *match.span())
    for match in SEGMENTS.finditer(clause):
        for segment in filter(None, match.groups()):
            name = segment.rstrip("ab")
            yield Number("segment", f"s{ROMAN.get(name, name)}", *match.span())


def shown(size: Size) -> str:
    """`12 x 8 mm`, or the mask in capitals as reports have it."""
    return size.upper() if isinstance(size, str) else f"{' x '.join(f'{mm:g}' for mm in size)} mm"


def joined(text: str) -> str:
    """A text, in small letters, in which the diameters of one lesion stand together: 12mm，前后径8mm as 12mmx8mm."""
    return FURTHER.sub("x", text)


def _millimetres(text: str) -> tuple[float, ...] | None:
    """Diameters of `12 x 8 mm`; a unit holds for the numbers before it. None where it is no measure.

    Without any unit two diameters are taken for one measure: centimetres where a number has a decimal and all are below
    10, as people write them, else millimetres.
    """
    parts = DIAMETER.findall(text.replace(",", "."))
    units = [unit for _, unit in parts]
    if not any(units) and len(parts) == 1:
        return None
    lengths = []
    if not any(units):
        in_cm = any("." in number for number, _ in parts) and all(float(number) < 10 for number, _ in parts)
        units = ["cm" if in_cm else "mm"] * len(parts)
    for place, (number, _) in enumerate(parts):
        unit = next((unit for unit in units[place:] if unit), next(unit for unit in reversed(units) if unit))
        lengths.append(round(float(number) * (10 if CENTIMETRES.match(unit) else 1), 2))
    return tuple(sorted(lengths, reverse=True))


def same_size(first: Size, second: Size) -> bool:
    """Whether two measures agree: each diameter that both have within 20 % of the smaller one or 2 mm.

    A mask agrees only with the same mask.

    Source:
        Tessler et al. 2017, ACR TI-RADS, J Am Coll Radiol 14, Growth: at least 20 % and 2 mm.
    """
    if isinstance(first, str) or isinstance(second, str):
        return first == second
    return all(abs(a - b) <= max(LEAST_MM, SHARE * min(a, b)) for a, b in zip(first, second))


def agreeing(predicted: Collection[Size], reference: Collection[Size]) -> int:
    """Maximum number of pairs of agreeing measures, each measure used once."""
    if not predicted or not reference:
        return 0
    if predicted == reference:
        return len(predicted)
    if len(predicted) == 1 or len(reference) == 1:
        return int(any(same_size(one, other) for one in predicted for other in reference))
    agree = csr_array([[same_size(one, other) for other in reference] for one in predicted])
    return int((maximum_bipartite_matching(agree) >= 0).sum())
