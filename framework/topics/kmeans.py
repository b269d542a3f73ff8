"""K-means with faiss, for distillers.

Shapes: n points, K topics, D dimensions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

# torch is imported before faiss, because the other order has crashed (faiss#3401); see tests/canaries/test_faiss.py.
import torch  # noqa: F401

# isort: split
import faiss
import numpy as np

from framework.models.device import on_cpu
from framework.topics.quality import largest_first

log = logging.getLogger(__name__)
SAMPLE = 50_000  # points on which initializations compete, if there are more
REFINED = 10  # iterations over all points after them
BLOCK = 65_536  # points whose distances are in memory at a time


@dataclass(frozen=True)
class KMeans:
    """K-means settings; runs on a GPU if faiss supports it and the run uses one.

    Source:
        Johnson, Douze and Jégou 2019, arXiv 1702.08734. Spherical: Dhillon and Modha 2001, Machine Learning 42.

    Args:
        restarts: number of initializations; the clustering with the smallest squared distance is kept.
        iterations: per initialization.
        spherical: centroids have length 1, so that the nearest has the largest cosine; needs points of length 1.
            Otherwise a centroid is the mean of its points.
    """

    restarts: int
    iterations: int
    spherical: bool = False

    def centroids(self, points: np.ndarray, count: int, seed: int) -> np.ndarray:
        """The best centroids of several initializations, float32 [K, D].

        Initialized by greedy k-means++ (scikit-learn): over 20 seeds the squared distance was 2 % smaller than with
        k-means++ of faiss and 3 % smaller than with its default, random points. It also works with older faiss.

        Of more than 50,000 points, a sample chooses the initialization, and all points refine its centroids.
        """
        from sklearn.cluster import kmeans_plusplus  # takes a second to import

        sample = points
        if len(points) > SAMPLE:
            sample = points[np.sort(np.random.default_rng(seed).choice(len(points), SAMPLE, replace=False))]
        best, least = np.zeros(0), np.inf
        for start in range(self.restarts):
            draw = (seed * 1_000_003 + start) % 2**31  # consecutive seeds have no initialization in common
            first, _ = kmeans_plusplus(sample, count, random_state=draw)
            found = self._trained(sample, first, self.iterations, draw)
            total = float(nearest(sample, found)[1].sum())
            if total < least:
                best, least = found, total
        return best if sample is points else self._trained(points, best, min(REFINED, self.iterations), seed % 2**31)

    def _trained(self, points: np.ndarray, first_KD: np.ndarray, iterations: int, seed: int) -> np.ndarray:
        kmeans = faiss.Kmeans(
            points.shape[1],
            len(first_KD),
            niter=iterations,
            seed=seed,
            spherical=self.spherical,
            max_points_per_centroid=len(points),  # the default of 256 subsamples silently
            min_points_per_centroid=1,
            gpu=_gpus(),
        )
        kmeans.train(points, init_centroids=np.ascontiguousarray(first_KD, dtype=np.float32))
        return np.array(kmeans.centroids)

    def labels(self, points: np.ndarray, count: int, seed: int) -> np.ndarray:
        """The cluster of each point, int64 [n]."""
        return nearest(points, self.centroids(points, count, seed))[0]

    def topics(self, points: np.ndarray, count: int, seed: int) -> Clusters:
        """The clusters of training points, the largest first."""
        log.info(
            "faiss %s clusters %d reports on the %s",
            faiss.__version__,
            len(points),
            "GPU" if _gpus() else "CPU" if on_cpu() else "CPU (this faiss offers no GPU)",
        )
        centroids = self.centroids(points, count, seed)
        centroids = centroids[largest_first(nearest(points, centroids)[0], count)]
        scale = float(nearest(points, centroids)[1].mean())
        return Clusters(centroids, max(scale, 1e-6), self.spherical)


@dataclass(frozen=True)
class Clusters:
    """The result of k-means."""

    centroids_KD: np.ndarray
    scale: float  # of soft weights: the mean squared distance of a training point to its centroid
    spherical: bool = False  # all centroids have length 1, up to rounding

    def assign(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest cluster of each point, int64 [n], and soft weights, float32 [n, K], whose rows sum to 1.

        Weights are the softmax of the negative squared distance over its training mean: the posterior of a mixture of
        spherical Gaussians with equal priors and a variance of half that mean per dimension.
        """
        labels_n = np.empty(len(points), dtype=np.int64)
        weights_nK = np.empty((len(points), len(self.centroids_KD)), dtype=np.float32)
        for start in range(0, len(points), BLOCK):
            block = slice(start, start + BLOCK)
            distances = squared_distances(points[block], self.centroids_KD)
            if self.spherical:
                distances[~points[block].any(axis=1)] = 1.0  # the origin is equally far from all, up to rounding
            weights = np.exp((distances.min(axis=1, keepdims=True) - distances) / self.scale)
            labels_n[block], weights_nK[block] = distances.argmin(axis=1), weights / weights.sum(axis=1, keepdims=True)
        return labels_n, weights_nK


def _gpus() -> int:
    return 0 if on_cpu() else min(1, faiss.get_num_gpus())


def nearest(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each point, int64 [n], and the squared distance to it, float64 [n]."""
    labels, least = np.empty(len(points), dtype=np.int64), np.empty(len(points))
    for start in range(0, len(points), BLOCK):
        block = slice(start, start + BLOCK)
        distances = squared_distances(points[block], centroids)
        labels[block], least[block] = distances.argmin(axis=1), distances.min(axis=1)
    return labels, least


def squared_distances(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Squared distances, float64 [n, K]."""
    points, centroids = points.astype(np.float64), centroids.astype(np.float64)
    squares = (points**2).sum(axis=1)[:, None] + (centroids**2).sum(axis=1)[None]
    return np.maximum(squares - 2 * points @ centroids.T, 0)
