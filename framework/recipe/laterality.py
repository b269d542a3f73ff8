"""Reports that name a side, and augmentations that mirror images: a mirrored left is a right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from framework.registry import Plugin
from framework.registry.signature import class_texts
from framework.runtime.errors import Problem

SIDE = "side"  # in `mentions` of a dataset: its reports name sides
# English: whole words, short forms ("Lt", "L breast") and quadrants (LUQ, RUOQ), but not "right angle". Chinese: 左 or
# 右, but not 左右, which means "about" after a number and both sides elsewhere.
ENGLISH = (
    r"left(?:most|wards?)?",
    r"right(?:most|wards?)?(?![ -]angle[sd]?\b)",
    r"(?:left|right)hand(?:ed)?",
    r"[lr]t",
    r"[lr](?=[-.]? ?(?:breasts?|lobes?|thyroid|axilla|axillary|sided?|kidney|liver)\b)",
    r"[lr][ul][oi]?q",
)
CHINESE = ("左(?!右)", "(?<!左)右")
_SIDE = re.compile("|".join([*(rf"\b(?:{word})\b" for word in ENGLISH), *CHINESE]), re.IGNORECASE)
CONTEXT = 20  # characters shown on both sides of the word


def side_in(report: str) -> str | None:
    """The first word of a report that names a side, with its context; None if there is none."""
    match = _SIDE.search(report)
    if match is None:
        return None
    begin, end = max(0, match.start() - CONTEXT), match.end() + CONTEXT
    return " ".join(("..." * (begin > 0) + report[begin:end] + "..." * (end < len(report))).split())


def mirrors_by(augment: Plugin, keys: Mapping[str, Any]) -> str | None:
    """The key by which an augmentation with these `keys` mirrors images; its class lists such keys in `mirrors`."""
    return next((key for key in class_texts(augment, "mirrors") or () if keys.get(key)), None)


def declares_sides(dataset: Plugin) -> bool:
    """Whether a data set's class declares that its reports name sides."""
    return SIDE in (class_texts(dataset, "mentions") or ())


def mirrored_sides(augment: Plugin, keys: Mapping[str, Any], training_reports: Sequence[str]) -> Problem | None:
    """The problem of mirrored images whose reports name a side, if there is one."""
    key = mirrors_by(augment, keys)
    sides = [] if key is None else [words for words in map(side_in, training_reports) if words is not None]
    if not sides:
        return None
    return Problem(
        "mirrored-sides",
        f"{len(sides)} of {len(training_reports)} training reports name a side, such as '{sides[0]}', "
        "and a mirrored left is a right",
        f"data.augment.{key}",
        hint="Set it to 0.",
    )
