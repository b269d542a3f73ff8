"""Scores of (prediction, reference) pairs, on the tokenizer's words and, for Chinese, on characters beside them."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from framework.exam import Pair
from framework.recipe.monitor import weight_problem
from framework.recipe.schema import WEIGHTED_SUM
from framework.registry import did_you_mean
from framework.runtime.console import print0

# A character, or a whole masked measure such as _2DS_: half of one means nothing.
CHARACTER = re.compile(r"_[A-Za-z0-9]+_|\S")


class Scorer:
    """The recipe's metrics over one tokenizer's segmentation.

    Args:
        weights: of the scores whose sum is monitored; none: no sum is.

    Raises:
        ValueError: no metric gives a score that is weighed, or its weight has the wrong sign.
    """

    def __init__(self, metrics: Sequence[Any], tokenizer: Any, weights: Mapping[str, float] | None = None) -> None:
        self.metrics, self.tokenizer, self.weights = list(metrics), tokenizer, dict(weights or {})
        self.warned: set[str] = set()
        for name, weight in self.weights.items():
            if problem := weight_problem(name, weight, self.metric_of(name).higher_is_better):
                raise ValueError(f"evaluate.monitor: {problem}")

    @property
    def segmentation(self) -> str:
        """What the words of the scores are; scores of other segmentations do not compare."""
        characters = "; *_char: single characters" if self._also_characters else ""
        return self.tokenizer.segmentation + characters

    @property
    def _also_characters(self) -> bool:
        return self.tokenizer.language == "zh"

    def score(
        self, rows: Sequence[tuple[str, str, str]], took: dict[tuple[int, str], float] | None = None
    ) -> dict[str, float]:
        """Values by name, of rows (exam id, prediction, reference).

        Args:
            took: is told how long each cut took, by the id of its metric and its suffix. [s]
        """
        values: dict[str, float] = {}
        for metric, pairs, suffix in self.cuts(rows):
            begin = time.perf_counter()
            values |= {f"{name}{suffix}": value for name, value in self._call(metric, pairs).items()}
            if took is not None:
                took[id(metric), suffix] = time.perf_counter() - begin
        add_sum(values, self.weights)
        return {name: round(float(value), 6) for name, value in values.items()}

    def cuts(self, rows: Sequence[tuple[str, str, str]]) -> Iterator[tuple[Any, list[Pair], str]]:
        """Each metric, the pairs that it scores, and what is put behind its names: first words, then characters."""
        pairs = _pairs(rows, self.tokenizer.segment)
        yield from ((metric, pairs, "") for metric in self.metrics)
        if self._also_characters:
            pairs = _pairs(rows, CHARACTER.findall)
            yield from ((metric, pairs, "_char") for metric in self.metrics if metric.by_words)

    def one(self, name: str, rows: Sequence[tuple[str, str, str]]) -> float:
        """A single value, without the cost of the other metrics."""
        if name == WEIGHTED_SUM and self.weights:
            return sum(weight * self.one(score, rows) for score, weight in self.weights.items())
        return float(self._call(self.metric_of(name), _pairs(rows, self.tokenizer.segment))[name])

    def higher_is_better(self, name: str) -> bool:
        """Whether more of a score, or of the weighted sum, is better."""
        return (name == WEIGHTED_SUM and bool(self.weights)) or bool(self.metric_of(name).higher_is_better)

    def _call(self, metric: Any, pairs: Sequence[Pair]) -> dict[str, float]:
        """A metric's values; what it warns of is said once a run, not once an epoch."""
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
        """The metric that gives a value of this name, and says whether higher is better."""
        for metric in self.metrics:
            if name in metric.names:
                return metric
        known = [each for metric in self.metrics for each in metric.names]
        raise ValueError(
            f"evaluate.monitor: no metric gives '{name}'.{did_you_mean(name, known)} The recipe's metrics give: "
            f"{', '.join(known)}"
        )


def add_sum(values: dict[str, Any], weights: Mapping[str, float]) -> None:
    """Adds the weighted sum to the values by name, numbers or arrays, where all that it is of are there."""
    if weights and weights.keys() <= values.keys():
        values[WEIGHTED_SUM] = sum(weight * values[name] for name, weight in weights.items())


def _pairs(rows: Sequence[tuple[str, str, str]], segment: Callable[[str], list[str]]) -> list[Pair]:
    return [Pair(name, p, r, tuple(segment(p)), tuple(segment(r))) for name, p, r in rows]
