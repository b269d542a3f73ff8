"""Words of the BI-RADS lexicon for a lesion's measures, and a report composed of them.

The archive has no reports. Every statement of a composed report is either the experts' annotation (category,
histology) or a rule below over a measure; docs/data.md gives the literature for each rule. A threshold either follows a
definition of the lexicon and is a constant, or is a quantile of the training patients' measures (`Thresholds`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from plugins.dataset.busbra.measure import Measures

ROUND = 1.2  # largest elongation that is still round
TALL = 0.9  # height / width from which a lesion is not parallel; nor is a round one (BI-RADS)
BLURRED = 0.2  # share of the boundary without a step from which a margin is indistinct
FLUID, PARTLY_FLUID = 0.65, 0.15  # share of fluid from which a lesion is anechoic, or mixed
ISO = (0.75, 1.25)  # grey of an isoechoic lesion, as a share of the tissue's
BEHIND = 0.3  # log2 of grey: a quarter brighter, or a fifth darker, than beside
SIZES = ((0.25, "less than one quarter"), (0.42, "about one third"), (0.58, "about one half"))
LARGE = "about two thirds or more"

# Ranks of the thresholds among training patients: threshold -> (measure, share of the patients that are below).
RANKS = {
    "dented": ("solidity", 0.13),
    "lobed": ("solidity", 0.32),
    "toothed": ("roughness", 0.86),
    "scalloped": ("roughness", 0.67),
    "irregular": ("roughness", 0.79),
    "uneven": ("unevenness", 0.96),
    "streaked": ("unevenness", 0.62),
    "marked": ("echo", 0.21),
    "shallow": ("depth", 0.28),
    "deep": ("depth", 0.77),
}


@dataclass(frozen=True)
class Thresholds:
    """The thresholds without a definition in the lexicon."""

    dented: float  # solidity below which a contour is irregular
    lobed: float  # solidity below which it is lobulated
    toothed: float  # roughness from which a margin is spiculated
    scalloped: float  # roughness from which a margin is microlobulated
    irregular: float  # roughness from which a shape is irregular
    uneven: float  # unevenness from which a lesion is mixed
    streaked: float  # unevenness from which fluid is a part, not a shade
    marked: float  # grey, as a share of the tissue's, below which a lesion is markedly hypoechoic
    shallow: float  # depth below which a lesion is superficial
    deep: float  # depth from which it is deep

    @classmethod
    def fit(cls, patients: Sequence[Measures]) -> Thresholds:
        """The quantiles of `RANKS` over these patients, of whom there is at least one."""
        return cls(
            **{
                name: float(np.quantile([getattr(measures, measure) for measures in patients], rank))
                for name, (measure, rank) in RANKS.items()
            }
        )


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


def attributes(measures: Measures, limits: Thresholds) -> dict[str, str]:
    """The lexicon's word for each feature of a lesion."""
    m = measures
    shape, echogenicity = _shape(m, limits), _echogenicity(m, limits)
    return {
        "lesion": "present",
        "shape": shape,
        "orientation": "not parallel" if m.ratio >= TALL or shape == "round" else "parallel",
        "margin": _margin(m, limits),
        "echogenicity": echogenicity,
        "hypoechogenicity": "none"
        if echogenicity != "hypoechoic"
        else "marked"
        if m.echo < limits.marked
        else "moderate",
        "posterior": "enhancement" if m.posterior > BEHIND else "shadow" if m.posterior < -BEHIND else "none",
        "place": "superficial" if m.depth < limits.shallow else "central depth" if m.depth < limits.deep else "deep",
        "size": next((words for limit, words in SIZES if m.width < limit), LARGE),
    }


def _shape(m: Measures, limits: Thresholds) -> str:
    if m.solidity < limits.dented or m.roughness >= limits.irregular:
        return "irregular"
    return "round" if m.elongation < ROUND else "oval"


def _margin(m: Measures, limits: Thresholds) -> str:
    if m.roughness >= limits.toothed:  # the most suspicious word that fits, as the lexicon asks
        return "spiculated"
    if m.roughness >= limits.scalloped or m.solidity < limits.lobed:
        return "lobulated"
    return "indistinct" if m.blur >= BLURRED else "circumscribed"


def _echogenicity(m: Measures, limits: Thresholds) -> str:
    # Fluid has a smooth wall and casts no shadow; an equally dark lesion without them is solid and markedly hypoechoic.
    if m.fluid >= FLUID and m.roughness < limits.scalloped and m.posterior >= -BEHIND:
        return "anechoic"
    if m.unevenness >= limits.uneven or (PARTLY_FLUID <= m.fluid < FLUID and m.unevenness >= limits.streaked):
        return "mixed"
    return "hypoechoic" if m.echo < ISO[0] else "isoechoic" if m.echo <= ISO[1] else "hyperechoic"


def describe(
    measures: Measures, limits: Thresholds, *, birads: str, pathology: str, histology: str, device: str
) -> dict[str, Any]:
    """An exam's attributes: the words above, the annotation, and the measures that led to the words."""
    return {
        **attributes(measures, limits),
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
