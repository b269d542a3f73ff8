"""Which reports name a side, and which augmentations would turn it into the other: a mirrored left is a right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from framework.registry import Plugin
from framework.registry.signature import class_texts

SIDE = "side"  # in `tells` of a data set: some of its reports name a side, whatever its keys
# In English whole words, short forms such as "Lt" and "L breast", and quadrants by their initials (LUQ, RUOQ); only
# "right" of an angle is no side. In Chinese 左 or 右, but not 左右: behind a number it means "about", elsewhere both
# sides alike.
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
AROUND = 20  # characters of a report that are shown on both sides of the word


def side_in(report: str) -> str | None:
    """The first word of a report that names a side, with what stands around it; None where no word does."""
    found = _SIDE.search(report)
    if found is None:
        return None
    begin, end = max(0, found.start() - AROUND), found.end() + AROUND
    return " ".join(("..." * (begin > 0) + report[begin:end] + "..." * (end < len(report))).split())


def mirrors_by(augment: Plugin, keys: Mapping[str, Any]) -> str | None:
    """The key by which an augmentation, set by `keys`, mirrors images; its class names such keys in `mirrors`."""
    return next((key for key in class_texts(augment, "mirrors") or () if keys.get(key)), None)


def tells_sides(dataset: Plugin) -> bool:
    """Whether a data set says of its reports that they name sides, without being read."""
    return SIDE in (class_texts(dataset, "tells") or ())


def mirrored_sides(augment: Plugin, keys: Mapping[str, Any], training_reports: Sequence[str]) -> str | None:
    """What is wrong where images are mirrored under reports that say which side they show; None where nothing is."""
    key = mirrors_by(augment, keys)
    named = [] if key is None else [words for words in map(side_in, training_reports) if words is not None]
    if not named:
        return None
    return (
        f"data.augment.{key}: {len(named)} of {len(training_reports)} training reports name a side, such as "
        f"'{named[0]}', and a mirrored left is a right; set data.augment.{key} to 0"
    )
