"""What both languages share: how a clinic picks its words, and which clauses a truth makes worth saying."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .truth import Lesion, Truth

SKEW = 0.28  # each phrasing is chosen this often in relation to the one before it
STOCK = (0.86, 0.10, 0.04)  # the phrases of a clinic for a normal exam


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the phrasings, the first by far the most often."""
    return _draw(rng, options, [SKEW**place for place in range(len(options))])


def stock(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of a clinic's three stock texts."""
    return _draw(rng, options, STOCK)


def _draw(rng: np.random.Generator, options: Sequence[str], weights: Sequence[float]) -> str:
    rest = rng.random() * sum(weights)  # by hand: `rng.choice` with shares takes longer than all the rest of a report
    for option, weight in zip(options, weights):
        rest -= weight
        if rest < 0:
            return option
    return options[-1]


def says_posterior(truth: Truth, lesion: Lesion) -> bool:
    """Breast reports always speak of what lies behind a lesion, others only if something does."""
    return truth.organ == "breast" or lesion.posterior != "none"


def says_calcification(truth: Truth, lesion: Lesion) -> bool:
    """Always if there is some; its absence is worth a word in solid lesions of the thyroid."""
    return lesion.calcification or (truth.organ == "thyroid" and lesion.echogenicity != "anechoic")
