"""Reports for benchmarks, as many as wanted."""

from __future__ import annotations

import random

from plugins.dataset.phantom import Phantom


def reports(count: int, seed: int) -> list[str]:
    """Reports of phantom exams with a few words exchanged, so that they differ."""
    texts = [exam.report for exam in Phantom(exams=2000, seed=1).splits()["train"]]
    words = sorted({word for text in texts for word in text.split()})
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        split = draw.choice(texts).split()
        for _ in range(6):
            split[draw.randrange(len(split))] = draw.choice(words)
        found.append(" ".join(split))
    return found
