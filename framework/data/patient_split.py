"""Assigns patients to splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from framework.data.check import SPLITS


def split_of(patient: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of a patient: where a hash of seed and id, as a number from 0 to 1, lies among the shares.

    It depends on nothing else, so other patients may come and go, and the assignment needs no file. The shares hold in
    expectation: of few patients, a split may get none.
    """
    number = int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:8]) / 2**64
    for name in SPLITS[:-1]:
        number -= shares.get(name, 0)
        if number < 0:
            return name
    return SPLITS[-1]
