"""Topics as k-means clusters of text embeddings: the knowledge distiller of arXiv 2406.00644, with faiss.

Shapes: n reports, K topics, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt

from framework.registry import register
from framework.text.embedding import build_text_embedding
from framework.text.lsa import ReportSpace, lsa_positions
from framework.topics.count import AUTO, TopicChoice, check_auto_range, choose_topic_count, require_distinct_reports
from framework.topics.kmeans import KMeans
from framework.topics.quality import TopicDescription, describe_topics, topic_quality


@register("distiller", "faiss_kmeans")
class FaissKMeans:
    """A text embedding, then k-means with faiss, on a GPU if faiss supports one.

    `topics: auto` takes 5 s of CPU time for 1,200 phantom reports.

    Source:
        Topics as labels: Li et al. 2024, arXiv 2406.00644. K-means: Johnson, Douze and Jégou 2019, arXiv
        1702.08734. Spherical: Dhillon and Modha 2001, Machine Learning 42.

    Args:
        topics: Number of clusters; `auto` chooses it by silhouette and stability on the training reports. [topics]
        auto_range: Smallest and largest number that `auto` tries; null for 2 to 30. [topics]
        embedding: Embedding of reports: word counts, TF-IDF, its truncated SVD (`lsa`), or a sentence encoder; all
            normalized to length 1.
        encoder: Sentence encoder: a folder, package:NAME/FOLDER, or a name on the model hub.
        dimensions: Dimensions of the embedding, fewer if the reports span fewer; null for 64 with `lsa`, and for the
            4,096 words of most reports with `counts` and `tfidf`. [dimensions]
        spherical: Normalizes centroids; reports belong to the centroid of the largest cosine.
        restarts: Number of k-means runs with different initial centroids; the best one is kept. [runs]
        iterations: Maximum iterations of each k-means run. [iterations]
    """

    def __init__(
        self,
        *,
        segment: Callable[[str], list[str]],
        seed: int,
        topics: PositiveInt | Literal["auto"] = 18,
        auto_range: tuple[int, int] | None = None,
        embedding: Literal["counts", "tfidf", "lsa", "sentence_encoder"] = "lsa",
        encoder: str | None = None,
        dimensions: PositiveInt | None = None,
        spherical: bool = False,
        restarts: PositiveInt = 5,
        iterations: PositiveInt = 50,
    ) -> None:
        check_auto_range("faiss_kmeans", topics, auto_range)
        self.segment = segment
        self.seed = seed
        self.topics = topics
        self.topic_count: Any = None if topics == AUTO else topics  # int once fitted
        self.auto_range = auto_range
        self.embedding = build_text_embedding(
            embedding, segment=segment, seed=seed, dimensions=dimensions, encoder=encoder
        )
        self.kmeans = KMeans(restarts, iterations, spherical)
        self.space: ReportSpace | None = None
        self.choice: TopicChoice | None = None

    def fit(self, texts: Sequence[str]) -> None:
        """Finds the topics of training reports, numbered from the largest to the smallest.

        Raises:
            UserError: there are fewer distinct reports than topics.
        """
        self._texts = list(texts)
        self._word_lists = [self.segment(text) for text in texts]
        require_distinct_reports("faiss_kmeans", self.topics, self._word_lists)
        self.space = self.embedding.fit(self._texts).space
        self._points = self.embedding.embed(self._texts)
        if self.topics == AUTO:
            self.choice = choose_topic_count("faiss_kmeans", self._points, self._clusterer, self.auto_range, self.seed)
            self.topic_count = self.choice.chosen
        self._clusters = self.kmeans.topics(self._points, self.topic_count, self.seed)

    def _clusterer(self, places: np.ndarray, seed: int) -> Callable[[int], np.ndarray]:
        return lambda count: self.kmeans.labels(self._points[places], count, seed)

    def assign(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The nearest topic of each report, int64 [n], and soft weights, float32 [n, K], whose rows sum to 1.

        Weights are the softmax of the negative squared distance divided by its mean in training. A report without a
        known word is at the origin and gets the centroid nearest to it (topic 0 if all centroids have length 1).
        """
        return self._clusters.assign(self._points if list(texts) == self._texts else self.positions(texts))

    def positions(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of reports, float32 [n, D]."""
        return self.embedding.embed(texts)

    def describe(self) -> list[TopicDescription]:
        """Words, size and an example of each topic, from the training reports."""
        return describe_topics(self._texts, self._word_lists, *self._clusters.assign(self._points))

    def quality(self) -> dict[str, float | None]:
        """Silhouette and stability on the training reports. Refits cluster the same space from other starts.

        Silhouettes are measured in a report space, the distiller's own where it has one, so that embeddings compare.
        """
        points = lsa_positions(self._word_lists, self.seed) if self.space is None else self._points
        labels, _ = self._clusters.assign(self._points)

        def refit(places: np.ndarray, seed: int) -> np.ndarray:
            return self._clusterer(places, seed)(self.topic_count)

        return topic_quality(self._texts, points, labels, refit, self.seed)
