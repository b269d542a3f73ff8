"""Scores of (prediction, reference) pairs: on the tokenizer's words and, for Chinese, on characters as well."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from framework.exam import Exam, Pair
from framework.recipe.monitor import weight_problem
from framework.recipe.schema import WEIGHTED_SUM
from framework.registry import did_you_mean
from framework.registry.source import unknown_name
from framework.runtime.console import print0
from framework.runtime.errors import UserError

# A character, or a whole masked measure such as _2DS_: half of one means nothing.
CHARACTER = re.compile(r"_[A-Za-z0-9]+_|\S")

Rows = Sequence[tuple[str, str, str]]  # exam id, prediction, reference
Seconds = dict[tuple[int, str], float]  # of each call of a metric, by the metric's id and the suffix of its scores


class Scorer:
    """The recipe's metrics over one tokenizer's segmentation.

    Args:
        weights: of the scores in the weighted sum that is monitored; None or empty: there is no such sum.
        exams: those that are scored, if a metric reads attributes of exams (`exam_attributes`).

    Raises:
        UserError: no metric has a weighted score, its weight has the wrong sign, or no exam has an attribute that a
            metric reads.
    """

    def __init__(
        self,
        metrics: Sequence[Any],
        tokenizer: Any,
        weights: Mapping[str, float] | None = None,
        exams: Sequence[Exam] = (),
    ) -> None:
        self.metrics, self.tokenizer, self.weights = list(metrics), tokenizer, dict(weights or {})
        self.attributes = _attributes_of(exams, self.metrics)
        self.warned: set[str] = set()
        for name, weight in self.weights.items():
            if problem := weight_problem(name, weight, self.metric_of(name).higher_is_better):
                raise UserError.of([problem.at("evaluate.monitor")])

    @property
    def segmentation(self) -> str:
        """Describes the words that are scored; scores of different segmentations are not comparable."""
        characters = "; *_char: single characters" if self._also_characters else ""
        return self.tokenizer.segmentation + characters

    @property
    def _also_characters(self) -> bool:
        return self.tokenizer.language == "zh"

    def score(self, rows: Rows, names: Collection[str] | None = None) -> dict[str, float]:
        """Values by name.

        Args:
            names: of scores; metrics that compute none of them are not called. None is all.
        """
        return self.timed_score(rows, names)[0]

    def timed_score(self, rows: Rows, names: Collection[str] | None = None) -> tuple[dict[str, float], Seconds]:
        """Values by name, and the seconds that each call of a metric took."""
        values: dict[str, float] = {}
        seconds: Seconds = {}
        needed = None if names is None else {*names, *(self.weights if WEIGHTED_SUM in names else ())}
        for metric, pairs, suffix in self.metric_inputs(rows):
            if needed is not None and needed.isdisjoint(f"{name}{suffix}" for name in metric.names):
                continue
            start = time.perf_counter()
            values |= {f"{name}{suffix}": value for name, value in self._call(metric, pairs).items()}
            seconds[id(metric), suffix] = time.perf_counter() - start
        add_weighted_sum(values, self.weights)
        return {name: round(float(value), 6) for name, value in values.items()}, seconds

    def metric_inputs(self, rows: Rows) -> Iterator[tuple[Any, list[Pair], str]]:
        """Each metric with its pairs and the suffix of its scores' names: first words, then characters (`_char`)."""
        for segment, suffix, metrics in self.segmentations():
            pairs = self._pairs(rows, segment)
            yield from ((metric, pairs, suffix) for metric in metrics)

    def segmentations(self) -> list[tuple[Callable[[str], list[str]], str, list[Any]]]:
        """Each way to cut texts, the suffix of its scores' names, and the metrics that score texts cut so."""
        found = [(self.tokenizer.segment, "", self.metrics)]
        if self._also_characters:
            found.append((CHARACTER.findall, "_char", [metric for metric in self.metrics if metric.by_words]))
        return found

    def score_one(self, name: str, rows: Rows) -> float:
        """One value, or the weighted sum, without the cost of the other metrics."""
        if name == WEIGHTED_SUM and self.weights:
            return sum(weight * self.score_one(score, rows) for score, weight in self.weights.items())
        return float(self._call(self.metric_of(name), self._pairs(rows, self.tokenizer.segment))[name])

    def higher_is_better(self, name: str) -> bool:
        """Whether a higher value of a score, or of the weighted sum, is better. Without metrics, scores are terms."""
        if name == WEIGHTED_SUM and (self.weights or not self.metrics):
            return True
        return bool(self.metrics) and bool(self.metric_of(name).higher_is_better)

    def _pairs(self, rows: Rows, segment: Callable[[str], list[str]]) -> list[Pair]:
        known = self.attributes
        return [Pair(name, p, r, tuple(segment(p)), tuple(segment(r)), known.get(name, {})) for name, p, r in rows]

    def _call(self, metric: Any, pairs: Sequence[Pair]) -> dict[str, float]:
        """A metric's values; prints each of its warnings once per run."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values = metric(pairs)
        for warning in caught:
            kind = str(warning.message).split(":")[0]
            if kind not in self.warned:
                self.warned.add(kind)
                print0(f"warning: {warning.message}")
        return values

    def metric_of(self, name: str) -> Any:
        """The metric that computes the score of this name."""
        for metric in self.metrics:
            if name in metric.names:
                return metric
        known = [each for metric in self.metrics for each in metric.names]
        raise UserError(
            "unknown-name",
            f"no metric of the recipe computes '{name}'",
            place="evaluate.monitor",
            expected=f"one of {', '.join(known)}",
            hint=did_you_mean(name, known).strip(),
        )


def add_weighted_sum(values: dict[str, Any], weights: Mapping[str, float]) -> None:
    """Adds the weighted sum to the values by name (numbers or arrays), if all of its scores are among them."""
    if weights and weights.keys() <= values.keys():
        values[WEIGHTED_SUM] = sum(weight * values[name] for name, weight in weights.items())


def _attributes_of(exams: Sequence[Exam], metrics: Sequence[Any]) -> dict[str, dict[str, str]]:
    """The attributes that metrics read, as texts, of each exam that has them."""
    wanted = {name for metric in metrics for name in getattr(metric, "exam_attributes", ())}
    if not wanted or not exams:
        return {}
    known = sorted({name for exam in exams for name in exam.attributes})
    if missing := sorted(wanted.difference(known)):
        place = "evaluate.metrics"
        raise UserError.of([unknown_name("attribute of the exams", name, known, place=place) for name in missing])
    return {
        exam.id: {name: str(exam.attributes[name]) for name in wanted if exam.attributes.get(name) is not None}
        for exam in exams
    }
