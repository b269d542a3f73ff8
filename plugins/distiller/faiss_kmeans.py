"""Topics as clusters of reports in a latent semantic space: the knowledge distiller of arXiv 2406.00644, with faiss.

Shapes: n reports, K topics, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

# torch comes before faiss: the other way round has crashed (faiss#3401); tests/canaries/test_faiss.py pins it.
import torch  # noqa: F401

# isort: split
import faiss
import numpy as np
from pydantic import PositiveInt
from sklearn.cluster import kmeans_plusplus

from framework.registry import register
from framework.report_space import ReportSpace
from framework.topic_measures import TopicCard, by_size, measure, topic_cards

log = logging.getLogger(__name__)


@register("distiller", "faiss_kmeans")
class FaissKMeans:
    """TF-IDF, truncated SVD, then k-means with faiss (on a GPU where faiss offers one).

    Source:
        Topics as labels: Li et al. 2024, arXiv 2406.00644. K-means: Johnson, Douze and Jégou 2019, arXiv
        1702.08734.

    Args:
        topics: number of clusters. [topics]
        dimensions: of the space that reports are clustered in; fewer where the reports span fewer. [dimensions]
        restarts: k-means runs from different starting points; the one with the least squared distance is kept. [runs]
        iterations: of each k-means run. [iterations]
    """

    def __init__(
        self,
        *,
        segment: Callable[[str], list[str]],
        seed: int,
        topics: PositiveInt = 18,
        dimensions: PositiveInt = 64,
        restarts: PositiveInt = 5,
        iterations: PositiveInt = 50,
    ) -> None:
        self.segment = segment
        self.seed = seed
        self.topic_count = topics
        self.dimensions = dimensions
        self.restarts = restarts
        self.iterations = iterations
        self.space: ReportSpace | None = None

    def fit(self, texts: Sequence[str]) -> None:
        """Finds the topics of training reports; they are numbered from the largest to the smallest.

        Raises:
            ValueError: there are fewer different reports than topics.
        """
        self._texts = list(texts)
        self._word_lists = [self.segment(text) for text in texts]
        different = len({tuple(sorted(words)) for words in self._word_lists})
        if different < self.topic_count:
            raise ValueError(
                f"distiller faiss_kmeans: {self.topic_count} topics asked of {len(texts)} training reports, of which "
                f"{different} differ in their words; set distiller.topics to {max(different, 1)} or less"
            )
        self.space = ReportSpace(self.dimensions, self.seed).fit(self._word_lists)
        self._points = self.space.embed(self._word_lists)
        gpus = faiss.get_num_gpus()
        log.info(
            "faiss %s clusters %d reports on the %s",
            faiss.__version__,
            len(texts),
            "GPU" if gpus else "CPU (this faiss offers no GPU)",
        )
        self._centroids = self._cluster(self.seed)
        order = by_size(self._nearest(self._centroids), self.topic_count)
        self._centroids = self._centroids[order]
        # The scale of soft weights: the mean squared distance of a report to its centroid.
        self._spread = max(float(self._distances(self._points, self._centroids).min(axis=1).mean()), 1e-6)

    def _cluster(self, seed: int) -> np.ndarray:
        """The best centroids of several starts, float32 [K, D].

        The starts are greedy k-means++ (scikit-learn): over 20 seeds they ended 2 % lower than faiss' own k-means++
        and 3 % lower than its default of random points, and they do not ask for a recent faiss.
        """
        best, least = None, np.inf
        for start in range(self.restarts):
            draw = (seed * 1_000_003 + start) % 2**31  # seeds next to each other share no start
            first, _ = kmeans_plusplus(self._points, self.topic_count, random_state=draw)
            kmeans = faiss.Kmeans(
                self._points.shape[1],
                self.topic_count,
                niter=self.iterations,
                seed=draw,
                max_points_per_centroid=len(self._points),  # the default of 256 drops reports without a word
                min_points_per_centroid=1,
                gpu=min(1, faiss.get_num_gpus()),
            )
            kmeans.train(self._points, init_centroids=np.ascontiguousarray(first, dtype=np.float32))
            total = float(self._distances(self._points, kmeans.centroids).min(axis=1).sum())
            if total < least:
                best, least = kmeans.centroids.copy(), total
        assert best is not None
        return best

    @staticmethod
    def _distances(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        """Squared distances, float64 [n, K]."""
        points, centroids = points.astype(np.float64), centroids.astype(np.float64)
        squares = (points**2).sum(axis=1)[:, None] + (centroids**2).sum(axis=1)[None]
        return np.maximum(squares - 2 * points @ centroids.T, 0)

    def _nearest(self, centroids: np.ndarray) -> np.ndarray:
        return self._distances(self._points, centroids).argmin(axis=1)

    def assign(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The nearest topic of each report, int64 [n], and soft weights, float32 [n, K], whose rows sum to 1.

        Weights are the softmax of the negative squared distance over its mean in training. A report without a known
        word lies at the origin, and goes to the centroid next to that.
        """
        return self._weigh(self.positions(texts))

    def positions(self, texts: Sequence[str]) -> np.ndarray:
        """Where reports lie in the report space, float32 [n, D]."""
        assert self.space is not None, "fit the distiller first"
        return self.space.embed([self.segment(text) for text in texts])

    def _weigh(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distances = self._distances(points, self._centroids)
        weights = np.exp((distances.min(axis=1, keepdims=True) - distances) / self._spread)
        return distances.argmin(axis=1), (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    def describe(self) -> list[TopicCard]:
        """Words, size and an example of each topic, from the training reports."""
        labels, weights = self._weigh(self._points)
        return topic_cards(self._texts, self._word_lists, labels, weights)

    def quality(self) -> dict[str, float | None]:
        """Silhouette and stability on the training reports. Refits cluster the same space from other starts."""
        labels = self._nearest(self._centroids)
        return measure(self._texts, self._points, labels, lambda seed: self._nearest(self._cluster(seed)), self.seed)
