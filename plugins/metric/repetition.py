"""Repetition: whether a report says the same thing twice, as a model that has lost its thread does."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import ngrams

LENGTH = 4  # words of a run
SENTENCE_ENDS = re.compile(r"[。；！？;!?\n]|\.(?!\d)")  # a point within a number ends nothing


@register("metric", "repetition")
class Repetition:
    """Share of reports with a run of four words that stands there twice, and share of sentences said before. 0 to 1.

    `repeated_4gram` is a share of the generated reports; `repeated_sentence` a share of their sentences that stand
    earlier in the same report. What the references repeat stands beside them, as `repeated_4gram/references`: a style
    with stock phrases repeats some, and a model of it need not go below. An empty report repeats nothing.

    Source:
        Holtzman et al. 2020, arXiv 1904.09751, section 5 (repetition); Paulus et al. 2018, arXiv 1705.04304, section
        2.5, for runs as the measure.
    """

    names = ("repeated_4gram", "repeated_sentence")
    by_words = True
    higher_is_better = False

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `ValueError` for no pairs."""
        return {name: float(value) for name, value in self.compute(self.per_exam_stats(pairs).sum(0)).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of the prediction, then the reference: a run comes twice, 1, sentences said before, sentences."""
        if not pairs:
            raise ValueError("repetition in no reports: the split is empty")
        rows = []
        for pair in pairs:
            told = _repeats(pair.prediction_words), 1, *_said_before(pair.prediction)
            rows.append((*told, _repeats(pair.reference_words), 1, *_said_before(pair.reference)))
        return np.array(rows, dtype=np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The values of sums over exams, [..., 8]."""
        values = {}
        for part, (repeating, reports, again, sentences) in (
            ("", np.moveaxis(sums[..., :4], -1, 0)),
            ("/references", np.moveaxis(sums[..., 4:], -1, 0)),
        ):
            values[f"repeated_4gram{part}"] = repeating / reports
            values[f"repeated_sentence{part}"] = again / np.maximum(sentences, 1)
        return values


def _repeats(words: Sequence[str]) -> bool:
    runs = list(ngrams(words, LENGTH))
    return len(set(runs)) < len(runs)


def _said_before(report: str) -> tuple[int, int]:
    """Sentences that stand earlier in the report, and all."""
    sentences = [" ".join(part.lower().split()) for part in SENTENCE_ENDS.split(report)]
    sentences = [sentence for sentence in sentences if sentence]
    return len(sentences) - len(set(sentences)), len(sentences)
