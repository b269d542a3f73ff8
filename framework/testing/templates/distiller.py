"""Topics by length: short, medium and long reports, a baseline that ignores words.

Shapes: n reports, K topics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import PositiveInt

from framework.registry import register
from framework.topics.quality import TopicDescription, describe_topics, topic_quality


@register("distiller", "my_distiller")
class MyDistiller:
    """Divides the training reports into groups of equal size by their number of words.

    Args:
        topics: Number of groups. [topics]
    """

    def __init__(self, *, segment: Callable[[str], list[str]], seed: int, topics: PositiveInt = 3) -> None:
        self.segment, self.seed = segment, seed
        self.topic_count = topics
        self.space = None  # these topics have no report space

    def fit(self, texts: Sequence[str]) -> None:
        """Learns the thresholds from training reports; `assign` only reads them."""
        self._texts = list(texts)
        self._words = [self.segment(text) for text in texts]
        quantiles = np.linspace(0, 1, self.topic_count + 1)[1:-1]
        self._thresholds = np.quantile([len(words) for words in self._words], quantiles)

    def assign(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The topic of each report, int64 [n], and its weights, float32 [n, K], whose rows sum to 1."""
        labels = np.searchsorted(self._thresholds, self.positions(texts)[:, 0]).astype(np.int64)
        return labels, np.eye(self.topic_count, dtype=np.float32)[labels]

    def positions(self, texts: Sequence[str]) -> np.ndarray:
        """Coordinates of reports for plots: their number of words, float32 [n, 1]."""
        return np.array([[len(self.segment(text))] for text in texts], dtype=np.float32)

    def describe(self) -> list[TopicDescription]:
        """Words, size and an example of each topic, from the training reports."""
        return describe_topics(self._texts, self._words, *self.assign(self._texts))

    def quality(self) -> dict[str, float | None]:
        """Measures on the training reports. Nothing is random, so every refit finds the same topics."""
        labels, _ = self.assign(self._texts)
        return topic_quality(
            self._texts, self.positions(self._texts), labels, lambda places, seed: labels[places], self.seed
        )
