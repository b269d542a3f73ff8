"""The reward of a written report: a weighted mix of scores, each exam's own, against the training reports."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from framework.exam import Pair
from framework.recipe.monitor import weight_problem
from framework.recipe.score_names import corpus_score_problem

MakeReward = Callable[[dict[str, float]], "Reward"]  # of weights by the names of scores


class Reward:
    """What reports of training exams are worth: the weighted sum of scores, each of one report alone.

    Scores are of metrics that offer sums of each exam (`per_exam_stats`, `compute`): of others, such as the number of
    different words over all reports, one report tells nothing. A metric that weighs words by how rare they are learns
    that from all training reports, once (`fit`), not from the few reports of a batch. BLEU of one report without a run
    of four words in common is 0, as it is not smoothed.

    Args:
        weights: of each score, by its name: above 0 where higher is better, below 0 where lower is.
        metrics: the one that gives each score, by the score's name, made for this reward alone.
        tokenizer: what turns token ids into text, and text into words.
        references: the training reports, by exam.

    Raises:
        ValueError: there are no weights, or one is 0 or weighs its score the wrong way round; or a metric does not
            score single reports.
    """

    def __init__(
        self, weights: Mapping[str, float], metrics: Mapping[str, Any], tokenizer: Any, references: Mapping[str, str]
    ) -> None:
        if not weights:
            raise ValueError("reward: no score has a weight; expected for instance {cider: 1.0}")
        for score, weight in weights.items():
            if problem := weight_problem(score, weight, metrics[score].higher_is_better):
                raise ValueError(f"reward: {problem}")
            if not hasattr(metrics[score], "per_exam_stats"):
                raise ValueError(f"reward: {corpus_score_problem(score)}")
        self.weights, self.metrics, self.tokenizer = dict(weights), dict(metrics), tokenizer
        self.references = {name: (text, tuple(tokenizer.segment(text))) for name, text in references.items()}
        for metric in self._different_metrics():
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
        for metric in self._different_metrics():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a report is empty or shares nothing is no news here
                values = metric.compute(metric.per_exam_stats(pairs))
            for score, weight in self.weights.items():
                if self.metrics[score] is metric:
                    total += weight * values[score]
        return total

    def _different_metrics(self) -> list[Any]:
        """Each metric once, however many scores are its own."""
        return list({id(metric): metric for metric in self.metrics.values()}.values())

    def __deepcopy__(self, memo: Any) -> Reward:
        return self  # never changes, and holds all training reports
