"""Scores of (prediction, reference) pairs, on the tokenizer's words and, for Chinese, on characters beside them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from framework.exam import Pair
from framework.progress import say

# A character, or a whole masked measure such as _2DS_: half of one means nothing.
CHARACTER = re.compile(r"_[A-Za-z0-9]+_|\S")


class Scorer:
    """The recipe's metrics over one tokenizer's segmentation."""

    def __init__(self, metrics: Sequence[Any], tokenizer: Any) -> None:
        self.metrics, self.tokenizer = list(metrics), tokenizer
        self.warned: set[str] = set()

    @property
    def segmentation(self) -> str:
        """What the words of the scores are; scores of other segmentations do not compare."""
        characters = "; *_char: single characters" if self._also_characters else ""
        return self.tokenizer.segmentation + characters

    @property
    def _also_characters(self) -> bool:
        return self.tokenizer.language == "zh"

    def score(self, rows: Sequence[tuple[str, str, str]]) -> dict[str, float]:
        """Values by name, of rows (exam id, prediction, reference)."""
        pairs = _pairs(rows, self.tokenizer.segment)
        values: dict[str, float] = {}
        for metric in self.metrics:
            values |= self._call(metric, pairs)
        if self._also_characters:
            pairs = _pairs(rows, CHARACTER.findall)
            for metric in self.metrics:
                if metric.by_words:
                    values |= {f"{name}_char": value for name, value in self._call(metric, pairs).items()}
        return {name: round(float(value), 6) for name, value in values.items()}

    def one(self, name: str, rows: Sequence[tuple[str, str, str]]) -> float:
        """A single value, without the cost of the other metrics."""
        return float(self._call(self.metric_of(name), _pairs(rows, self.tokenizer.segment))[name])

    def _call(self, metric: Any, pairs: Sequence[Pair]) -> dict[str, float]:
        """A metric's values; what it warns of is said once a run, not once an epoch."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values = metric(pairs)
        for warning in caught:
            kind = str(warning.message).split(":")[0]
            if kind not in self.warned:
                self.warned.add(kind)
                say(f"warning: {warning.message}")
        return values

    def metric_of(self, name: str) -> Any:
        """The metric that gives a value of this name, and says whether higher is better."""
        for metric in self.metrics:
            if name in metric.names:
                return metric
        known = [each for metric in self.metrics for each in metric.names]
        raise ValueError(f"evaluate.monitor: no metric gives '{name}'. The recipe's metrics give: {', '.join(known)}")


def _pairs(rows: Sequence[tuple[str, str, str]], segment: Callable[[str], list[str]]) -> list[Pair]:
    return [Pair(name, p, r, tuple(segment(p)), tuple(segment(r))) for name, p, r in rows]
