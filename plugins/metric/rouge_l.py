"""ROUGE-L: F-score of the longest common subsequence with the reference."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import NgramCounter, Words, at_least, distinct, lengths, safe_divide
from framework.scoring.pairs import require_references, warn_empty_predictions

FILL = -1  # after the last word of a text
BLOCK = 1024  # pairs at a time
JUDGES = 1000  # distinct references that choose the best constant
BETA = 1.2  # recall counts a little more than precision: the value of the COCO captions' scorer


def lcs_lengths(first_BL: np.ndarray, second_BT: np.ndarray) -> np.ndarray:
    """Lengths of the longest common subsequences of many pairs of texts, int64 [B].

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): the row of the table of a word is a
    number with a bit for each word of the first text, and all pairs take the step to the next word together.

    Args:
        first_BL: words by number, with `FILL` after the last one; one row is compared with all of `second_BT`.
        second_BT: the same; `FILL` matches nothing.
    """
    pairs, first_BL = len(second_BT), np.pad(first_BL, ((0, 0), (0, -first_BL.shape[1] % 64)), constant_values=FILL)
    open_BN = np.full((pairs, first_BL.shape[1] // 64), ~np.uint64(0))  # a bit becomes 0 where the subsequence grows
    alone = _places(first_BL[0], int(second_BT.max(initial=0))) if len(first_BL) == 1 else None
    for word_B in second_BT.T:
        if alone is None:
            equal_BL = (first_BL == word_B[:, None]) & (word_B != FILL)[:, None]
            matched_BN = open_BN & np.packbits(equal_BL, axis=1, bitorder="little").view("<u8")
        else:
            matched_BN = open_BN & alone[word_B]
        carry_B = np.zeros(pairs, dtype=bool)
        for part in range(open_BN.shape[1]):
            opened, matched = open_BN[:, part], matched_BN[:, part]
            total = opened + matched
            overflows = total < opened
            total += carry_B
            carry_B = overflows | (carry_B & (total == 0))
            open_BN[:, part] = total | opened & ~matched
    return np.unpackbits(~open_BN.view(np.uint8), axis=1).sum(axis=1, dtype=np.int64)


def _places(text_L: np.ndarray, largest: int) -> np.ndarray:
    """The places of each word in one text as bits, uint64 [largest + 2, N]; the last row is that of `FILL`."""
    size = max(largest, int(text_L.max(initial=0))) + 2
    equal_WL = np.zeros((size, len(text_L)), dtype=bool)
    equal_WL[text_L, np.arange(len(text_L))] = text_L != FILL
    return np.packbits(equal_WL, axis=1, bitorder="little").view("<u8")


def _by_number(texts: Sequence[Words], numbers: dict[str, int]) -> np.ndarray:
    """The words of texts by number, int32 [n, longest], with `FILL` after the last one. Adds unknown words."""
    rows = np.full((len(texts), max(map(len, texts), default=0)), FILL, dtype=np.int32)
    for row, text in enumerate(texts):
        rows[row, : len(text)] = [numbers.setdefault(word, len(numbers)) for word in text]
    return rows


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
        numbers: dict[str, int] = {}
        predictions, prediction_of = distinct(pair.prediction_words for pair in pairs)
        references, reference_of = distinct(pair.reference_words for pair in pairs)
        first, second = _by_number(predictions, numbers), _by_number(references, numbers)
        common_B = np.empty(len(pairs))
        for start in range(0, len(pairs), BLOCK):
            block = slice(start, start + BLOCK)
            common_B[block] = lcs_lengths(first[prediction_of[block]], second[reference_of[block]])
        lengths_B, expected_B = lengths(predictions)[prediction_of], lengths(references)[reference_of]
        return np.column_stack([_f_scores(common_B, lengths_B, expected_B), np.ones(len(pairs))])

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """ROUGE-L from sums over exams, [..., 2]."""
        return {"rouge_l": sums[..., 0] / sums[..., 1]}

    def best_constants(
        self, texts: Sequence[str], words: Sequence[tuple[str, ...]], pairs: Sequence[Pair]
    ) -> dict[str, int]:
        """Index of the text that scores best as the prediction of every reference.

        A common subsequence is no longer than the number of common words, whatever their order. Texts are scored in the
        order of this bound until no other text can reach the best one. Of more than 1,000 distinct references, 1,000
        judge.
        """
        judges = sorted(Counter(pair.reference_words for pair in pairs).items())
        judges = [judges[i] for i in np.linspace(0, len(judges) - 1, min(JUDGES, len(judges)), dtype=int)]
        references, times_M = [text for text, _ in judges], np.array([times for _, times in judges], dtype=np.float64)
        counter = NgramCounter(references, 1)
        expected = counter.references[0]
        counts = counter.count(words)[0][:, : expected.shape[1]]
        lengths_N, lengths_M = lengths(words), lengths(references)
        bounds_N = np.empty(len(words))
        for start in range(0, len(words), BLOCK):
            block = slice(start, start + BLOCK)
            common_NM = np.zeros((len(bounds_N[block]), len(references)))
            for k in range(1, int(expected.data.max(initial=0)) + 1):
                common_NM += (at_least(counts[block], k) @ at_least(expected, k).T).toarray()
            bounds_N[block] = _f_scores(common_NM, lengths_N[block, None], lengths_M) @ times_M
        numbers: dict[str, int] = {}
        references_MT = _by_number(references, numbers)
        best, best_total = 0, -1.0
        for index in np.argsort(-bounds_N, kind="stable").tolist():
            if bounds_N[index] < best_total:
                break
            common_M = lcs_lengths(_by_number([words[index]], numbers), references_MT)
            total = float(_f_scores(common_M, lengths_N[index], lengths_M) @ times_M)
            if total > best_total:
                best, best_total = index, total
        return {"rouge_l": best}


def _f_scores(common: np.ndarray, predicted: np.ndarray | float, reference: np.ndarray) -> np.ndarray:
    """F of common words: with the precision c / p and the recall c / r, it is (1 + beta²) c / (p + beta² r)."""
    whole = np.broadcast_to(predicted + BETA**2 * reference, common.shape)
    return safe_divide((1 + BETA**2) * common, whole)
