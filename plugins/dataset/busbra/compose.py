"""Words of the BI-RADS lexicon for a lesion's measures, and a report composed of them.

The archive has no reports. Every statement of a composed report is either the experts' annotation (category,
histology) or a rule below over a measure; docs/data.md gives the literature for each rule. Thresholds were set by the
lexicon's definitions, by the distribution of measures over all lesions, and by looking at images with their pathology.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from plugins.dataset.busbra.measure import Measures

ROUND = 1.2  # largest elongation that is still round
TALL = 0.9  # height / width from which a lesion is not parallel; nor is a round one (BI-RADS)
DENTED = 0.88  # solidity below which a contour is irregular
LOBED = 0.92  # solidity below which it is lobulated
TOOTHED, SCALLOPED = 1.2, 1.11  # roughness from which a margin is spiculated, or microlobulated
IRREGULAR = 1.16  # roughness from which a shape is irregular
BLURRED = 0.2  # share of the boundary without a step from which a margin is indistinct
FLUID, PARTLY_FLUID = 0.65, 0.15  # share of fluid from which a lesion is anechoic, or mixed
UNEVEN, STREAKED = 0.55, 0.3  # unevenness from which it is mixed; and from which fluid is a part, not a shade
ISO = (0.75, 1.25)  # grey of an isoechoic lesion, as a share of the tissue's
MARKED = 0.45  # ... below which it is markedly hypoechoic
BEHIND = 0.3  # log2 of grey: a quarter brighter, or a fifth darker, than beside
DEPTHS = (0.25, 0.4)  # superficial, central depth, deep: shares of the frame's height
SIZES = ((0.25, "less than one quarter"), (0.42, "about one third"), (0.58, "about one half"))
LARGE = "about two thirds or more"

# The first phrase of a clause is the usual one. Slots: what the attributes hold.
WEIGHTS = (0.6, 0.25, 0.15)
OPENING = (
    "{Article} {shape} mass is seen {place}, {orientation}.",
    "There is {article} {shape} mass {place}, {orientation}.",
    "{Place}, {article} {shape} mass is identified, {orientation}.",
)
PLACE = {
    "superficial": ("in the superficial part of the breast", "at superficial depth", "in the superficial tissue"),
    "central depth": ("at central depth", "at central depth in the breast", "at central depth of the field of view"),
    "deep": ("in the deep part of the breast", "at a deep position", "in the deep tissue"),
}
SHAPE = {"oval": ("oval",), "round": ("round",), "irregular": ("irregular",)}
ORIENTATION = {
    "parallel": ("parallel to the skin", "with its long axis parallel to the skin", "wider than tall"),
    "not parallel": ("not parallel to the skin", "with an orientation not parallel to the skin", "non-parallel"),
}
MARGIN = {
    "circumscribed": ("The margin is circumscribed", "It is well circumscribed", "It has a well-defined margin"),
    "indistinct": ("The margin is indistinct", "It has an indistinct margin", "The margin is ill-defined"),
    "lobulated": ("The margin is microlobulated", "It has a lobulated margin", "The margin is lobulated"),
    "spiculated": ("The margin is spiculated", "It has a spiculated margin", "The margin shows spiculated contours"),
}
SIZE = (
    "{margin} and it takes up {size} of the image width.",
    "{margin}; it spans {size} of the image width.",
    "{margin}. Its width is {size} of the image.",
)
ECHO = {
    "anechoic": ("The mass is anechoic", "It is anechoic", "The mass appears anechoic"),
    "hypoechoic": ("The mass is hypoechoic", "It is hypoechoic", "The mass appears hypoechoic"),
    "markedly hypoechoic": ("The mass is markedly hypoechoic", "It is markedly hypoechoic"),
    "isoechoic": ("The mass is isoechoic", "It is isoechoic", "The mass appears isoechoic"),
    "hyperechoic": ("The mass is hyperechoic", "It is hyperechoic", "The mass appears hyperechoic"),
    "mixed": ("The mass is a heterogeneous echo complex", "It shows a heterogeneous echo complex"),
}
POSTERIOR = {
    "enhancement": ("with posterior acoustic enhancement", "with posterior enhancement"),
    "shadow": ("with posterior acoustic shadowing", "with posterior shadowing"),
    "none": ("with no posterior acoustic features", "with no posterior features"),
}
IMPRESSION = ("Impression: BI-RADS category {birads}", "Assessment: BI-RADS category {birads}")
HISTOLOGY = ("histology {histology}", "{histology} on histology")


def attributes(measures: Measures) -> dict[str, str]:
    """The lexicon's word for each feature of a lesion."""
    m = measures
    return {
        "lesion": "present",
        "shape": _shape(m),
        "orientation": "not parallel" if m.ratio >= TALL or _shape(m) == "round" else "parallel",
        "margin": _margin(m),
        "echogenicity": _echogenicity(m),
        "hypoechogenicity": _degree(m),
        "posterior": "enhancement" if m.posterior > BEHIND else "shadow" if m.posterior < -BEHIND else "none",
        "place": "superficial" if m.depth < DEPTHS[0] else "central depth" if m.depth < DEPTHS[1] else "deep",
        "size": next((words for limit, words in SIZES if m.width < limit), LARGE),
    }


def _shape(m: Measures) -> str:
    if m.solidity < DENTED or m.roughness >= IRREGULAR:
        return "irregular"
    return "round" if m.elongation < ROUND else "oval"


def _margin(m: Measures) -> str:
    if m.roughness >= TOOTHED:  # the most suspicious word that fits, as the lexicon asks
        return "spiculated"
    if m.roughness >= SCALLOPED or m.solidity < LOBED:
        return "lobulated"
    return "indistinct" if m.blur >= BLURRED else "circumscribed"


def _echogenicity(m: Measures) -> str:
    # Fluid has a smooth wall and casts no shadow; an equally dark lesion without them is solid and markedly hypoechoic.
    if m.fluid >= FLUID and m.roughness < SCALLOPED and m.posterior >= -BEHIND:
        return "anechoic"
    if m.unevenness >= UNEVEN or (PARTLY_FLUID <= m.fluid < FLUID and m.unevenness >= STREAKED):
        return "mixed"
    return "hypoechoic" if m.echo < ISO[0] else "isoechoic" if m.echo <= ISO[1] else "hyperechoic"


def _degree(m: Measures) -> str:
    if _echogenicity(m) != "hypoechoic":
        return "none"
    return "marked" if m.echo < MARKED else "moderate"


def describe(measures: Measures, birads: str, pathology: str, histology: str, device: str) -> dict[str, Any]:
    """An exam's attributes: the words above, the annotation, and the measures that led to the words."""
    return {
        **attributes(measures),
        "birads": birads,
        "pathology": pathology,
        "tissue": histology,
        "device": device,
        "measures": {name: round(value, 4) for name, value in asdict(measures).items()},
    }


def compose(truth: Mapping[str, Any], seed: str, histology: bool) -> str:
    """A report of `truth`, worded by `seed`; the same seed gives the same text on every machine."""
    draw = random.Random(seed)

    def pick(phrases: tuple[str, ...]) -> str:
        return draw.choices(phrases, WEIGHTS[: len(phrases)])[0]

    words = {
        "shape": pick(SHAPE[truth["shape"]]),
        "place": pick(PLACE[truth["place"]]),
        "orientation": pick(ORIENTATION[truth["orientation"]]),
        "margin": pick(MARGIN[truth["margin"]]),
        "size": truth["size"],
        "birads": truth["birads"],
    }
    echo = truth["echogenicity"]
    if truth["hypoechogenicity"] == "marked":
        echo = "markedly hypoechoic"
    words["article"] = "an" if words["shape"][0] in "aeiou" else "a"
    words["Article"], words["Place"] = words["article"].capitalize(), words["place"].capitalize()
    sentences = [
        pick(OPENING).format(**words),
        pick(SIZE).format(**words),
        f"{pick(ECHO[echo])} {pick(POSTERIOR[truth['posterior']])}.",
        pick(IMPRESSION).format(**words),
    ]
    if histology:
        biopsy = f"{truth['pathology']} ({truth['tissue']})"
        sentences[-1] += f", {pick(HISTOLOGY).format(histology=biopsy)}"
    sentences[-1] += "."
    return " ".join(sentences)
