"""Reports whose topics are known."""

from __future__ import annotations

import random

KINDS = {
    "cyst": ["anechoic cyst with posterior enhancement", "thin smooth wall", "no inner flow"],
    "mass": ["irregular hypoechoic mass", "spiculated margin", "rich vascularity and calcification"],
    "surgery": ["postoperative scar after lumpectomy", "shadow behind the scar", "no recurrence"],
    "clear": ["no focal lesion", "homogeneous glandular tissue", "ducts not dilated"],
}


def corpus(reports: int, seed: int) -> tuple[list[str], list[int]]:
    """Reports of four kinds, and the kind of each."""
    draw = random.Random(seed)
    texts, kinds = [], []
    for number in range(reports):
        kind = number % 4
        phrases = draw.sample(list(KINDS.values())[kind], 2)
        side = draw.choice(["left", "right"])
        texts.append(f"{side} breast at {draw.randint(1, 12)} : {phrases[0]} , {phrases[1]} .")
        kinds.append(kind)
    return texts, kinds
