"""What metrics require of the pairs that they score."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from framework.exam import Pair
from framework.runtime.errors import UserError


def require_references(metric: str, pairs: Sequence[Pair], *, by_words: bool) -> None:
    """Checks that there are pairs and that no reference is empty.

    Raises:
        UserError: `empty-split` or `empty-report`.
    """
    require_pairs(metric, pairs)
    for pair in pairs:
        if not (pair.reference_words if by_words else pair.reference.strip()):
            raise UserError("empty-report", f"{metric}: the reference is empty", place=f"exam {pair.exam_id}")


def require_pairs(metric: str, pairs: Sequence[Pair]) -> None:
    """Raises `empty-split` if there are no pairs."""
    if not pairs:
        raise UserError("empty-split", f"{metric}: there are no reports to score")


def warn_empty_predictions(metric: str, pairs: Sequence[Pair], *, by_words: bool) -> None:
    """Warns of empty predictions, which score 0."""
    empty = sum(not (pair.prediction_words if by_words else pair.prediction.strip()) for pair in pairs)
    if empty:
        warnings.warn(f"{metric}: {empty} of {len(pairs)} predictions are empty and lower the score", stacklevel=3)
