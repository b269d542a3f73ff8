"""Repetition: how often generated reports repeat themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import ngrams
from framework.scoring.pairs import require_pairs

LENGTH = 4  # words of an n-gram
SENTENCE_ENDS = re.compile(r"[。；！？;!?\n]|\.(?!\d)")  # not the point of a decimal


@register("metric", "repetition")
class Repetition:
    """Fraction of reports with a repeated 4-gram, and fraction of sentences that repeat an earlier one. 0 to 1.

    `repeated_4gram` counts generated reports, `repeated_sentence` sentences that occur earlier in the same report.
    `repeated_4gram/references` and `repeated_sentence/references` give the values of the references: a style with stock
    phrases repeats some. An empty report repeats nothing.

    Source:
        Holtzman et al. 2020, arXiv 1904.09751, section 5 (repetition); Paulus et al. 2018, arXiv 1705.04304, section
        2.5, for runs as the measure.
    """

    names = ("repeated_4gram", "repeated_sentence")
    by_words = True
    higher_is_better = False

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split`."""
        return {name: float(value) for name, value in self.compute(self.per_exam_stats(pairs).sum(0)).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of prediction and reference: 1 if a 4-gram repeats, 1, repeated sentences, sentences."""
        require_pairs("repetition", pairs)
        rows = []
        for pair in pairs:
            texts = ((pair.prediction_words, pair.prediction), (pair.reference_words, pair.reference))
            rows.append([n for words, text in texts for n in (_repeats(words), 1, *_repeated_sentences(text))])
        return np.array(rows, dtype=np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The values from sums over exams, [..., 8]."""
        values = {}
        for suffix, (repeating, reports, repeated, sentences) in (
            ("", np.moveaxis(sums[..., :4], -1, 0)),
            ("/references", np.moveaxis(sums[..., 4:], -1, 0)),
        ):
            values[f"repeated_4gram{suffix}"] = repeating / reports
            values[f"repeated_sentence{suffix}"] = repeated / np.maximum(sentences, 1)
        return values


def _repeats(words: Sequence[str]) -> bool:
    found = list(ngrams(words, LENGTH))
    return len(set(found)) < len(found)


def _repeated_sentences(report: str) -> tuple[int, int]:
    """Number of sentences that repeat an earlier one, and of all."""
    sentences = [" ".join(part.lower().split()) for part in SENTENCE_ENDS.split(report)]
    sentences = [sentence for sentence in sentences if sentence]
    return len(sentences) - len(set(sentences)), len(sentences)
