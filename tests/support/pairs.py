"""Pairs of texts as a metric receives them."""

from __future__ import annotations

from framework.exam import Pair


def pair(number: int, prediction: str, reference: str) -> Pair:
    """A pair whose words are separated by spaces."""
    return Pair(str(number), prediction, reference, tuple(prediction.split()), tuple(reference.split()))
