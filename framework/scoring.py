"""Scores of (prediction, reference) pairs, on the tokenizer's words and, for Chinese, on characters beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from framework.exam import Pair

# A character, or a whole masked measure such as _2DS_: half of one means nothing.
CHARACTER = re.compile(r"_[A-Za-z0-9]+_|\S")


class Scorer:
    """The recipe's metrics over one tokenizer's segmentation."""

    def __init__(self, metrics: Sequence[Any], tokenizer: Any) -> None:
        self.metrics, self.tokenizer = list(metrics), tokenizer

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
        words = self.tokenizer.segment
        pairs = [Pair(i, p, r, tuple(words(p)), tuple(words(r))) for i, p, r in rows]
        values: dict[str, float] = {}
        for metric in self.metrics:
            values |= metric(pairs)
        if self._also_characters:
            letters = CHARACTER.findall
            pairs = [Pair(i, p, r, tuple(letters(p)), tuple(letters(r))) for i, p, r in rows]
            for metric in self.metrics:
                if metric.by_words:
                    values |= {f"{name}_char": value for name, value in metric(pairs).items()}
        return {name: round(float(value), 6) for name, value in values.items()}

    def one(self, name: str, rows: Sequence[tuple[str, str, str]]) -> float:
        """A single value, without the cost of the other metrics."""
        words = self.tokenizer.segment
        pairs = [Pair(i, p, r, tuple(words(p)), tuple(words(r))) for i, p, r in rows]
        return float(self.metric_of(name)(pairs)[name])

    def metric_of(self, name: str) -> Any:
        """The metric that gives a value of this name, and says whether higher is better."""
        for metric in self.metrics:
            if name in metric.names:
                return metric
        known = [each for metric in self.metrics for each in metric.names]
        raise ValueError(f"evaluate.monitor: no metric gives '{name}'. The recipe's metrics give: {', '.join(known)}")
