"""Topics as k-means clusters of a UMAP layout of reports: a knowledge distiller as in arXiv 2406.00644.

Shapes: n reports, K topics, D dimensions of the embedding, C dimensions of the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt

from framework.registry import register
from framework.registry.types import Fraction
from framework.text.embedding import build_text_embedding
from framework.text.lsa import ReportSpace, lsa_positions
from framework.topics.count import AUTO, TopicChoice, check_auto_range, choose_topic_count, require_distinct
from framework.topics.kmeans import KMeans
from framework.topics.quality import TopicDescription, describe_topics, topic_quality
from framework.topics.umap import UmapLayout


@register("distiller", "umap_kmeans")
class UmapKMeans:
    """A text embedding, reduced to few dimensions by UMAP, then k-means.

    On 1,200 phantom reports, with 450 of validation and test, it takes 35 s of CPU time, half of it UMAP's compilation.

    Source:
        Li et al. 2024, arXiv 2406.00644, and Li et al. 2022, MICCAI, arXiv 2206.09378 (SGF). UMAP: McInnes, Healy and
        Melville 2018, arXiv 1802.03426. K-means: Johnson, Douze and Jégou 2019, arXiv 1702.08734.

    Args:
        topics: Number of clusters; `auto` chooses it by silhouette and stability on the training reports. [topics]
        auto_range: Smallest and largest number that `auto` tries; null for 2 to 30. [topics]
        embedding: Input of UMAP: word counts, TF-IDF, its truncated SVD (`lsa`), or a sentence encoder.
        encoder: Sentence encoder: a folder, package:NAME/FOLDER, or a name on the model hub.
        dimensions: Dimensions of the embedding; null for 64 with `lsa`, and for the 4,096 words of most reports with
            `counts` and `tfidf`. [dimensions]
        neighbours: UMAP's n_neighbors: size of a report's neighbourhood, itself included. [reports]
        components: Dimensions of the layout. [dimensions]
        min_dist: UMAP's min_dist: minimum distance of reports in the layout.
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
        embedding: Literal["counts", "tfidf", "lsa", "sentence_encoder"] = "counts",
        encoder: str | None = None,
        dimensions: PositiveInt | None = None,
        neighbours: PositiveInt = 10,
        components: PositiveInt = 2,
        min_dist: Fraction = 0.1,
        restarts: PositiveInt = 5,
        iterations: PositiveInt = 50,
    ) -> None:
        check_auto_range("umap_kmeans", topics, auto_range)
        self.segment = segment
        self.seed = seed
        self.topics = topics
        self.topic_count: Any = None if topics == AUTO else topics  # int once fitted
        self.auto_range = auto_range
        self.embedding = build_text_embedding(
            embedding, segment=segment, seed=seed, dimensions=dimensions, encoder=encoder
        )
        self.plane = UmapLayout(
            "umap_kmeans",
            self.embedding,
            neighbours=neighbours,
            components=components,
            min_dist=min_dist,
            seed=seed,
        )
        self.kmeans = KMeans(restarts, iterations)
        self.space: ReportSpace | None = None
        self.choice: TopicChoice | None = None

    def fit(self, texts: Sequence[str]) -> None:
        """Finds the topics of training reports, numbered from the largest to the smallest.

        Raises:
            UserError: there are too few distinct reports for the topics or the layout.
        """
        self._texts = list(texts)
        self.plane.fit(self._texts)
        self.space = self.embedding.space
        self._points, _ = self.plane.places(self._texts)
        if self.topics == AUTO:
            vectors = self.embedding.embed(self._texts)
            self.choice = choose_topic_count("umap_kmeans", vectors, self._clusterer, self.auto_range, self.seed)
            self.topic_count = self.choice.chosen
        require_distinct("umap_kmeans", self.topic_count, len(texts), len(self.plane.places_mC))
        self._clusters = self.kmeans.topics(self._points, self.topic_count, self.seed)

    def _clusterer(self, places: np.ndarray, seed: int) -> Callable[[int], np.ndarray]:
        points = self.plane.refit(self.plane.rows(self._texts)[places], seed)
        return lambda count: self.kmeans.labels(points, count, seed)

    def assign(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The nearest topic of each report, int64 [n], and soft weights, float32 [n, K], whose rows sum to 1.

        Weights are the softmax of the negative squared distance divided by its mean in training. UMAP places an unseen
        report in the fixed layout of the training reports; a report without a known word is placed in the middle.
        """
        return self._clusters.assign(self.positions(texts))

    def positions(self, texts: Sequence[str]) -> np.ndarray:
        """Coordinates of reports in the layout, float32 [n, C]."""
        return self.plane.places(texts)[0]

    def describe(self) -> list[TopicDescription]:
        """Words, size and an example of each topic, from the training reports."""
        words = [self.segment(text) for text in self._texts]
        return describe_topics(self._texts, words, *self._clusters.assign(self._points))

    def quality(self) -> dict[str, float | None]:
        """Silhouette (in a report space made for this alone) and stability on the training reports.

        Each refit computes a new layout.
        """
        points = lsa_positions([self.segment(text) for text in self._texts], self.seed)
        labels, _ = self._clusters.assign(self._points)

        def refit(places: np.ndarray, seed: int) -> np.ndarray:
            return self._clusterer(places, seed)(self.topic_count)

        return topic_quality(self._texts, points, labels, refit, self.seed)
