"""The reward of a written report: a weighted mix of scores, each exam's own, against the training reports."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from framework.exam import Pair

MakeReward = Callable[[dict[str, float]], "Reward"]  # of weights by the names of scores


class Reward:
    """What reports of training exams are worth: the weighted sum of scores, each of one report alone.

    A metric that offers sums of each exam (`per_exam`, `of_sums`) is asked once for all reports; any other is called
    for each report. A metric that weighs words by how rare they are learns that from all training reports, once
    (`fit`), not from the few reports of a batch. Scores that are better when lower count negatively. BLEU of one report
    without a run of four words in common is 0, as it is not smoothed.

    Args:
        weights: of each score, by its name.
        metrics: that give the scores, made for this reward alone.
        tokenizer: what turns token ids into text, and text into words.
        references: the training reports, by exam.

    Raises:
        ValueError: no score has a weight.
    """

    def __init__(
        self, weights: Mapping[str, float], metrics: Sequence[Any], tokenizer: Any, references: Mapping[str, str]
    ) -> None:
        if not any(weights.values()):
            raise ValueError("reward: no score has a weight; expected for instance {cider: 1.0}")
        self.weights, self.metrics, self.tokenizer = dict(weights), list(metrics), tokenizer
        self.references = {name: (text, tuple(tokenizer.segment(text))) for name, text in references.items()}
        for metric in self.metrics:
            if hasattr(metric, "fit"):
                metric.fit([words for _, words in self.references.values()])

    def __call__(self, exam_ids: Sequence[str], reports: Sequence[list[int]]) -> np.ndarray:
        """The worth of a report of each exam, float64 [B].

        Args:
            reports: token ids, without BOS, EOS and PAD.
        """
        texts = [self.tokenizer.decode(ids) for ids in reports]
        pairs = [
            Pair(name, text, self.references[name][0], tuple(self.tokenizer.segment(text)), self.references[name][1])
            for name, text in zip(exam_ids, texts, strict=True)
        ]
        total = np.zeros(len(pairs))
        for metric in self.metrics:
            sign = 1 if metric.higher_is_better else -1
            values = self._values(metric, pairs)
            for score, weight in self.weights.items():
                if score in metric.names:
                    total += sign * weight * values[score]
        return total

    @staticmethod
    def _values(metric: Any, pairs: Sequence[Pair]) -> Mapping[str, np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a report is empty or shares nothing is no news here
            if hasattr(metric, "per_exam"):
                values: Mapping[str, np.ndarray] = metric.of_sums(metric.per_exam(pairs))
                return values
            each = [metric([pair]) for pair in pairs]
        return {name: np.array([values[name] for values in each], dtype=np.float64) for name in metric.names}

    def __deepcopy__(self, memo: Any) -> Reward:
        return self  # never changes, and holds all training reports
