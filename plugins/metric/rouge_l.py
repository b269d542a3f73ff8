"""ROUGE-L: F-score of the longest common subsequence with the reference."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import at_least, count_matrix, safe_divide
from framework.scoring.pairs import require_references, warn_empty_predictions

BETA = 1.2  # recall counts a little more than precision: the value of the COCO captions' scorer


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation
    revisited"): about 60 integer operations for two reports of 60 words instead of a table of 3600 cells.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(first)) - 1
    open_places = everywhere  # a bit becomes 0 where the subsequence grows
    for word in second:
        matched = open_places & places.get(word, 0)
        open_places = (open_places + matched | open_places - matched) & everywhere
    return len(first) - bin(open_places).count("1")


@register("metric", "rouge_l")
class RougeL:
    """F-score of the longest common subsequence of words, mean over reports. 0 to 1.

    F = (1 + beta²) P R / (R + beta² P) with beta 1.2, where P and R divide the length of the longest common subsequence
    by that of the prediction and of the reference.

    Source:
        Lin 2004, ACL workshop Text Summarization Branches Out, section 3.
    """

    names = ("rouge_l",)
    by_words = True
    higher_is_better = True

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split` or `empty-report`."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        warn_empty_predictions("ROUGE-L", pairs, by_words=True)
        if not sums_S[0]:
            warnings.warn(
                f"ROUGE-L is 0: no prediction of {len(pairs)} shares a word with its reference. Compare the language "
                "and segmentation of both texts",
                stacklevel=2,
            )
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report: its F, and 1."""
        require_references("ROUGE-L", pairs, by_words=True)
        rows = []
        for pair in pairs:
            common = longest_common_subsequence(pair.prediction_words, pair.reference_words)
            rows.append((_f_score(common, len(pair.prediction_words), len(pair.reference_words)), 1))
        return np.array(rows, dtype=np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """ROUGE-L from sums over exams, [..., 2]."""
        return {"rouge_l": sums[..., 0] / sums[..., 1]}

    def best_constants(
        self, texts: Sequence[str], words: Sequence[tuple[str, ...]], pairs: Sequence[Pair]
    ) -> dict[str, int]:
        """Index of the text that scores best as the prediction of every reference.

        A common subsequence is no longer than the number of common words, whatever their order. Texts are scored in the
        order of this bound until no other text can reach the best one.
        """
        references = Counter(pair.reference_words for pair in pairs)
        vocabulary: dict[Hashable, int] = {}
        expected = count_matrix(references, vocabulary, grow=True)
        counts = count_matrix(words, vocabulary, grow=False)
        common_NM = np.zeros((len(words), len(references)))
        for k in range(1, int(expected.data.max(initial=0)) + 1):
            common_NM += (at_least(counts, k) @ at_least(expected, k).T).toarray()
        lengths_N, lengths_M = (
            np.array([len(each) for each in some], dtype=np.float64) for some in (words, references)
        )
        times_M = np.array(list(references.values()), dtype=np.float64)
        bounds_N = _f_scores(common_NM, lengths_N[:, None], lengths_M) @ times_M
        best, best_total = 0, -1.0
        for index in np.argsort(-bounds_N, kind="stable").tolist():
            if bounds_N[index] < best_total:
                break
            text = words[index]
            total = sum(
                times * _f_score(longest_common_subsequence(text, each), len(text), len(each))
                for each, times in references.items()
            )
            if total > best_total:
                best, best_total = index, total
        return {"rouge_l": best}


def _f_score(common: int, predicted: int, reference: int) -> float:
    if not common:
        return 0.0
    precision, recall = common / predicted, common / reference
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _f_scores(common: np.ndarray, predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`_f_score` of arrays: with the precision and the recall of each, it is (1 + beta²) common / (p + beta² r)."""
    return safe_divide((1 + BETA**2) * common, np.broadcast_to(predicted + BETA**2 * reference, common.shape))
