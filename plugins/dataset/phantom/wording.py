"""Shared by both languages: choice of words, and which clauses a report contains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .truth import Lesion, Truth

SKEW = 0.28  # frequency of each phrasing relative to the one before
STOCK = (0.86, 0.10, 0.04)  # the phrases of a clinic for a normal exam


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Samples a phrasing; the first is by far the most frequent."""
    return _draw(rng, options, [SKEW**place for place in range(len(options))])


def stock(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Samples one of a clinic's three stock texts."""
    return _draw(rng, options, STOCK)


def _draw(rng: np.random.Generator, options: Sequence[str], weights: Sequence[float]) -> str:
    rest = rng.random() * sum(weights)  # `rng.choice` with weights takes longer than the rest of a report
    for option, weight in zip(options, weights):
        rest -= weight
        if rest < 0:
            return option
    return options[-1]


def mentions_posterior(truth: Truth, lesion: Lesion) -> bool:
    """Breast reports always mention posterior features, others only if present."""
    return truth.organ == "breast" or lesion.posterior != "none"


def mentions_calcification(truth: Truth, lesion: Lesion) -> bool:
    """Mentioned if present; its absence is mentioned for solid lesions of the thyroid."""
    return lesion.calcification or (truth.organ == "thyroid" and lesion.echogenicity != "anechoic")
