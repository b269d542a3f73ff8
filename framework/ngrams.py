"""Runs of neighbouring words or characters, which many scores of texts count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def ngrams(units: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """All runs of this many units, from the left."""
    return zip(*(units[start:] for start in range(length)))
