"""Length match: whether reports are as long as their references; many scores reward one or the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.pairs import require_references


@register("metric", "length")
class Length:
    """Words of the shorter of report and reference divided by words of the longer, mean over reports. 0 to 1.

    `length_match/ratio` is all generated words divided by all words of the references: below 1 if reports are short.

    Source:
        Sonoscribe; the ratio is that of Papineni et al. 2002, ACL, section 2.2.
    """

    names = ("length_match",)
    by_words = True
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split` or `empty-report`."""
        return {name: float(value) for name, value in self.compute(self.per_exam_stats(pairs).sum(0)).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report: shorter over longer, 1, its words, words of the reference."""
        require_references("length", pairs, by_words=True)
        rows = []
        for pair in pairs:
            written, expected = len(pair.prediction_words), len(pair.reference_words)
            rows.append((min(written, expected) / max(written, expected), 1, written, expected))
        return np.array(rows, dtype=np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Match and ratio from sums over exams, [..., 4]."""
        return {"length_match": sums[..., 0] / sums[..., 1], "length_match/ratio": sums[..., 2] / sums[..., 3]}
