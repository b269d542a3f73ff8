"""Topics by length: short, middle and long reports, as a baseline that knows no word.

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
    """Cuts the training reports into parts of equal size, by their number of words.

    Args:
        topics: How many parts.
    """

    def __init__(self, *, segment: Callable[[str], list[str]], seed: int, topics: PositiveInt = 3) -> None:
        self.segment, self.seed = segment, seed
        self.topic_count = topics
        self.space = None  # these topics lie in no report space

    def fit(self, texts: Sequence[str]) -> None:
        """Learns the cuts from training reports; `assign` only reads them."""
        self._texts = list(texts)
        self._words = [self.segment(text) for text in texts]
        shares = np.linspace(0, 1, self.topic_count + 1)[1:-1]
        self._cuts = np.quantile([len(words) for words in self._words], shares)

    def assign(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The topic of each report, int64 [n], and its weights, float32 [n, K], whose rows sum to 1."""
        labels = np.searchsorted(self._cuts, self.positions(texts)[:, 0]).astype(np.int64)
        return labels, np.eye(self.topic_count, dtype=np.float32)[labels]

    def positions(self, texts: Sequence[str]) -> np.ndarray:
        """Where reports lie on a map: their number of words, float32 [n, 1]."""
        return np.array([[len(self.segment(text))] for text in texts], dtype=np.float32)

    def describe(self) -> list[TopicDescription]:
        """Words, size and an example of each topic, from the training reports."""
        return describe_topics(self._texts, self._words, *self.assign(self._texts))

    def quality(self) -> dict[str, float | None]:
        """Measures on the training reports. Nothing is drawn, so every refit finds the same topics."""
        labels, _ = self.assign(self._texts)
        return topic_quality(self._texts, self.positions(self._texts), labels, lambda seed: labels, self.seed)
