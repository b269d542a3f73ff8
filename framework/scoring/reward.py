"""Reward of generated reports for a loss: a weighted sum of scores of single reports."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from framework.exam import Pair
from framework.recipe.monitor import weight_problem
from framework.recipe.score_names import corpus_score_problem
from framework.runtime.errors import UserError

MakeReward = Callable[[dict[str, float]], "Reward"]  # from weights by score name


class Reward:
    """Weighted sum of scores of single reports of training exams.

    Only scores of metrics with per-exam statistics (`per_exam_stats`, `compute`) have a value for a single report. A
    metric with word frequencies, such as CIDEr, takes them from all training reports (`fit`), not from the batch. BLEU
    is not smoothed: BLEU-4 of a report without a common 4-gram is 0.

    Args:
        weights: by score name; positive if higher is better, negative if lower is better.
        metrics: the metric of each score, by score name, used by this reward only.
        tokenizer: decodes token ids and segments texts.
        references: the training reports by exam id.

    Raises:
        UserError: there are no weights, a weight is 0 or has the wrong sign, or a metric does not score single reports.
    """

    def __init__(
        self, weights: Mapping[str, float], metrics: Mapping[str, Any], tokenizer: Any, references: Mapping[str, str]
    ) -> None:
        if not weights:
            raise UserError("missing-key", "no score has a weight", place="reward", expected="for example {cider: 1.0}")
        for score, weight in weights.items():
            if problem := weight_problem(score, weight, metrics[score].higher_is_better):
                raise UserError.of([problem.at("reward")])
            if not hasattr(metrics[score], "per_exam_stats") or hasattr(metrics[score], "exam_attributes"):
                raise UserError.of([corpus_score_problem(score).at("reward")])
        self.weights, self.metrics, self.tokenizer = dict(weights), dict(metrics), tokenizer
        self.references = {name: (text, tuple(tokenizer.segment(text))) for name, text in references.items()}
        for metric in self._distinct_metrics():
            if hasattr(metric, "fit"):
                metric.fit([words for _, words in self.references.values()])

    def __call__(self, exam_ids: Sequence[str], reports: Sequence[list[int]]) -> np.ndarray:
        """Reward of one report of each exam, float64 [B].

        Args:
            reports: token ids, without BOS, EOS and PAD.
        """
        texts = [self.tokenizer.decode(ids) for ids in reports]
        pairs = [
            Pair(name, text, self.references[name][0], tuple(self.tokenizer.segment(text)), self.references[name][1])
            for name, text in zip(exam_ids, texts, strict=True)
        ]
        total = np.zeros(len(pairs))
        for metric in self._distinct_metrics():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about empty reports, which are common early in training
                values = metric.compute(metric.per_exam_stats(pairs))
            for score, weight in self.weights.items():
                if self.metrics[score] is metric:
                    total += weight * values[score]
        return total

    def _distinct_metrics(self) -> list[Any]:
        """Each metric once, even if it has several of the scores."""
        return list({id(metric): metric for metric in self.metrics.values()}.values())

    def __deepcopy__(self, memo: Any) -> Reward:
        return self  # immutable, and it holds all training reports
