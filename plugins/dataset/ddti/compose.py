"""A report composed of the experts' descriptors of a nodule; the archive has none."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

# The archive's spellings and our words. White space is normalized before.
SPELLINGS: dict[str, dict[str, str]] = {
    "composition": {
        "solid": "solid",
        "predominantly solid": "predominantly solid",
        "spongiform": "spongiform",
        "predominantly cystic": "predominantly cystic",
        "cystic": "cystic",
        "dense": "dense",
    },
    "echogenicity": {
        "isoechogenicity": "isoechoic",
        "hypoechogenicity": "hypoechoic",
        "hyperechogenicity": "hyperechoic",
        "marked hypoechogenicity": "markedly hypoechoic",
    },
    "margins": {
        "well defined": "well-defined",
        "well defined smooth": "well-defined and smooth",
        "ill defined": "ill-defined",
        "ill- defined": "ill-defined",
        "microlobulated": "microlobulated",
        "macrolobulated": "macrolobulated",
        "spiculated": "spiculated",
    },
    "calcifications": {
        "non": "none",
        "microcalcification": "microcalcifications",
        "microcalcifications": "microcalcifications",
        "macrocalcification": "macrocalcifications",
        "macrocalcifications": "macrocalcifications",
    },
    "tirads": {category: category for category in ("2", "3", "4a", "4b", "4c", "5")},
}

# The first phrase of a clause is the usual one. Slots: the words above.
WEIGHTS = (0.6, 0.25, 0.15)
OPENING = (
    "{Article} {nodule} is seen in the thyroid.",
    "The thyroid contains {article} {nodule}.",
    "There is {article} {nodule} in the thyroid.",
)
MARGIN = ("The margin is {margin}.", "It has {article} {margin} margin.", "The nodule is {margin}.")
CALCIFICATION = {
    "none": ("No calcification is seen.", "There are no calcifications.", "It shows no calcification."),
    "microcalcifications": (
        "Microcalcifications are seen in it.",
        "It contains microcalcifications.",
        "There are microcalcifications inside.",
    ),
    "macrocalcifications": (
        "Macrocalcifications are seen in it.",
        "It contains macrocalcifications.",
        "There are macrocalcifications inside.",
    ),
}
IMPRESSION = ("Impression: TI-RADS category {tirads}.", "Assessment: TI-RADS category {tirads}.")


def attributes(words: Mapping[str, str | None]) -> dict[str, Any]:
    """Attributes of a nodule, named as in the other datasets; None if the archive lacks them.

    Args:
        words: composition, echogenicity, margins, calcifications and tirads, as `SPELLINGS` means them.
    """
    echo = words["echogenicity"]
    return {
        "lesion": "present",
        "composition": words["composition"],
        "echogenicity": echo and echo.removeprefix("markedly "),
        "hypoechogenicity": echo and {"markedly hypoechoic": "marked", "hypoechoic": "moderate"}.get(echo, "none"),
        "margin": words["margins"],
        "calcification": words["calcifications"],
        "tirads": words["tirads"],
    }


def compose(truth: Mapping[str, Any], seed: str) -> str:
    """A report of `truth`, worded by `seed`; the same seed gives the same text on every machine."""
    draw = random.Random(seed)

    def pick(phrases: tuple[str, ...]) -> str:
        return draw.choices(phrases, WEIGHTS[: len(phrases)])[0]

    echo = f"markedly {truth['echogenicity']}" if truth["hypoechogenicity"] == "marked" else truth["echogenicity"]
    nodule = " ".join(word for word in (truth["composition"], echo, "nodule") if word)
    sentences = [pick(OPENING).format(nodule=nodule, article=_article(nodule), Article=_article(nodule).capitalize())]
    if truth["margin"]:
        sentences.append(pick(MARGIN).format(margin=truth["margin"], article=_article(truth["margin"])))
    if truth["calcification"]:
        sentences.append(pick(CALCIFICATION[truth["calcification"]]))
    sentences.append(pick(IMPRESSION).format(tirads=truth["tirads"]))
    return " ".join(sentences)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
