"""ROUGE-L: how much of the reference a report tells in the same order, even with other words between."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from framework.exam import Pair
from framework.registry import register

BETA = 1.2  # recall counts a little more than precision: the value of the COCO captions' scorer


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length, with one bit for each word of `first` (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").

    About 60 operations on integers for two reports of 60 words, against 3600 cells of the usual table.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(first)) - 1
    open_places = everywhere  # a bit falls to 0 where the subsequence grows
    for word in second:
        matched = open_places & places.get(word, 0)
        open_places = (open_places + matched | open_places - matched) & everywhere
    return len(first) - bin(open_places).count("1")


@register("metric", "rouge_l")
class RougeL:
    """Longest common subsequence of words with the reference, as a mean over reports.

    F = (1 + beta²) P R / (R + beta² P) with beta 1.2, where P and R divide the length of the
    longest common subsequence by that of the prediction and of the reference. 0 to 1.

    Source:
        Lin 2004, ACL workshop Text Summarization Branches Out, section 3.
    """

    names = ("rouge_l",)
    by_words = True
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `ValueError` for no pairs, or a reference without words."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        empty = sum(not pair.prediction_words for pair in pairs)
        if empty:
            warnings.warn(f"ROUGE-L: {empty} of {len(pairs)} predictions are empty; each counts as 0", stacklevel=2)
        if not sums_S[0]:
            warnings.warn(
                f"ROUGE-L is 0: no prediction of {len(pairs)} shares a word with its reference. Compare the two texts' "
                "language and segmentation",
                stacklevel=2,
            )
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of each report: its F, and 1."""
        if not pairs:
            raise ValueError("ROUGE-L of no reports: the split is empty")
        rows = []
        for pair in pairs:
            if not pair.reference_words:
                raise ValueError(f"ROUGE-L: the reference of exam {pair.exam_id} has no words")
            common, score = longest_common_subsequence(pair.prediction_words, pair.reference_words), 0.0
            if common:
                precision = common / len(pair.prediction_words)
                recall = common / len(pair.reference_words)
                score = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
            rows.append((score, 1))
        return np.array(rows, dtype=np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The value of sums over exams, [..., 2]: a mean."""
        return {"rouge_l": sums[..., 0] / sums[..., 1]}
