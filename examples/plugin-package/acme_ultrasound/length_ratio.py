"""A metric that tells a model which says too little from one which says too much."""

from __future__ import annotations

from collections.abc import Sequence

from framework.exam import Pair
from framework.registry import register


@register("metric", "acme/length_ratio")
class LengthRatio:
    """How near the length of the reports is to that of the references: 1 is equal, 0 is nothing written.

    Source:
        The ratio that the brevity penalty of BLEU is made of (Papineni et al. 2002, section 2.2.2), made symmetric.
    """

    names = ("acme_length_ratio",)
    by_words = True
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        written = sum(len(pair.prediction_words) for pair in pairs)
        wanted = sum(len(pair.reference_words) for pair in pairs)
        return {"acme_length_ratio": min(written, wanted) / max(written, wanted, 1)}
