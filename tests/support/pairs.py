"""Pairs of texts as a metric is given them."""

from __future__ import annotations

from framework.exam import Pair


def pair(number: int, prediction: str, reference: str) -> Pair:
    """With words as they stand between spaces."""
    return Pair(str(number), prediction, reference, tuple(prediction.split()), tuple(reference.split()))
