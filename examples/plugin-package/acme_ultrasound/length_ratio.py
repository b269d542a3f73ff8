"""A metric of report length."""

from __future__ import annotations

from collections.abc import Sequence

from framework.exam import Pair
from framework.registry import register


@register("metric", "acme/length_ratio")
class LengthRatio:
    """Ratio of all generated words to all words of the references, or its inverse if larger than 1. 0 to 1.

    Source:
        The ratio in BLEU's brevity penalty (Papineni et al. 2002, section 2.2.2), made symmetric.
    """

    names = ("acme_length_ratio",)
    by_words = True
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        predicted = sum(len(pair.prediction_words) for pair in pairs)
        expected = sum(len(pair.reference_words) for pair in pairs)
        return {"acme_length_ratio": min(predicted, expected) / max(predicted, expected, 1)}
