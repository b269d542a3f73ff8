"""Topics as HDBSCAN clusters of a UMAP layout of reports: the knowledge distiller of SGF (MICCAI 2022).

Shapes: n reports, m distinct training reports, K topics, D dimensions of the embedding, C dimensions of the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt
from scipy.spatial.distance import cdist
from sklearn.cluster import HDBSCAN
from sklearn.neighbors import NearestNeighbors

from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.errors import UserError
from framework.text.embedding import build_text_embedding
from framework.text.lsa import ReportSpace, lsa_positions
from framework.topics.quality import TopicDescription, describe_topics, largest_first, topic_quality
from framework.topics.umap import UmapLayout

CHUNK = 512  # reports per distance matrix, to limit memory
TINY = 1e-9  # minimum distance, so that densities are finite


@register("distiller", "umap_hdbscan")
class UmapHdbscan:
    """A text embedding, reduced to few dimensions by UMAP, then HDBSCAN, which determines the number of topics.

    Reports outside of clusters are noise, which is the last topic. Each distinct report counts once: `min_samples`
    copies of a text would form the densest cluster.
    On phantom reports of the breast it found 21 clusters among 1,200 and 2 among 400. Time: as `umap_kmeans`.

    Source:
        Li et al. 2022, MICCAI, arXiv 2206.09378 (SGF), and Li et al. 2024, arXiv 2406.00644. UMAP: McInnes, Healy and
        Melville 2018, arXiv 1802.03426. HDBSCAN: Campello, Moulavi and Sander 2013, PAKDD. Unseen reports: the
        approximate prediction of McInnes, Healy and Astels 2017, JOSS 2(11).

    Args:
        embedding: Input of UMAP: word counts, TF-IDF, its truncated SVD (`lsa`), or a sentence encoder.
        encoder: Sentence encoder: a folder, package:NAME/FOLDER, or a name on the model hub.
        dimensions: Dimensions of the embedding; null for 64 with `lsa`, and for the 4,096 words of most reports with
            `counts` and `tfidf`. [dimensions]
        neighbours: UMAP's n_neighbors: size of a report's neighbourhood, itself included. [reports]
        components: Dimensions of the layout. [dimensions]
        min_dist: UMAP's min_dist: minimum distance of reports in the layout.
        min_cluster_size: Minimum size of a cluster. [distinct reports]
        min_samples: Neighbours, itself included, that determine a report's density; more give more noise. Null for
            `min_cluster_size`. [distinct reports]
    """

    def __init__(
        self,
        *,
        segment: Callable[[str], list[str]],
        seed: int,
        embedding: Literal["counts", "tfidf", "lsa", "sentence_encoder"] = "counts",
        encoder: str | None = None,
        dimensions: PositiveInt | None = None,
        neighbours: PositiveInt = 10,
        components: PositiveInt = 2,
        min_dist: Fraction = 0.1,
        min_cluster_size: PositiveInt = 10,
        min_samples: PositiveInt | None = None,
    ) -> None:
        if min_cluster_size < 2:
            raise UserError("out-of-range", "found 1", place="distiller.min_cluster_size", expected="2 or more")
        self.segment = segment
        self.seed = seed
        self.topic_count: Any = None  # int once fitted
        self.min_cluster_size = min_cluster_size
        self.min_samples = min_samples or min_cluster_size
        self.embedding = build_text_embedding(
            embedding, segment=segment, seed=seed, dimensions=dimensions, encoder=encoder
        )
        self.plane = UmapLayout(
            "umap_hdbscan",
            self.embedding,
            neighbours=neighbours,
            components=components,
            min_dist=min_dist,
            seed=seed,
        )
        self.space: ReportSpace | None = None

    def fit(self, texts: Sequence[str]) -> None:
        """Finds the topics of training reports, numbered from the largest to the smallest; the last is noise.

        Raises:
            UserError: there are too few distinct reports, or all of them are noise.
        """
        self._texts = list(texts)
        self.plane.fit(self._texts)
        self.space = self.embedding.space
        found = self._clustered(self.plane.places_mC)
        if found.max() < 0:
            raise UserError(
                "out-of-range",
                f"all of {len(found)} distinct training reports are noise",
                place="distiller",
                hint=f"Lower distiller.min_cluster_size ({self.min_cluster_size}) or distiller.min_samples "
                f"({self.min_samples}).",
            )
        rows = self.plane.rows(self._texts)
        of_reports = np.where(rows >= 0, found[rows], -1)  # the size of a topic counts copies
        order = largest_first(of_reports[of_reports >= 0], found.max() + 1)
        number = np.append(np.argsort(order), len(order))  # noise, -1, is the last
        self.topic_count = len(order) + 1
        self._groups = DenseGroups(self.plane.places_mC, number[found], len(order), self.min_samples)

    def _clustered(self, places: np.ndarray) -> np.ndarray:
        """HDBSCAN's labels; -1 for noise."""
        if len(places) < max(self.min_samples, self.min_cluster_size):
            return np.full(len(places), -1)
        return (
            HDBSCAN(min_cluster_size=self.min_cluster_size, min_samples=self.min_samples, copy=True).fit(places).labels_
        )

    def assign(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The topic of each report, int64 [n], and soft weights, float32 [n, K], whose rows sum to 1.

        A training text has its HDBSCAN label. UMAP places an unseen text in the fixed layout, and it joins a topic by
        density; see `DenseGroups`. A text without a known word is noise.
        """
        places, known = self.plane.places(texts)
        labels, weights = self._groups.assign(places, self.plane.rows(texts))
        labels[~known], weights[~known] = self.topic_count - 1, np.eye(self.topic_count)[-1]
        return labels, weights

    def positions(self, texts: Sequence[str]) -> np.ndarray:
        """Coordinates of reports in the layout, float32 [n, C]."""
        return self.plane.places(texts)[0]

    def describe(self) -> list[TopicDescription]:
        """Words, size and an example of each topic, from the training reports."""
        words = [self.segment(text) for text in self._texts]
        return describe_topics(self._texts, words, *self.assign(self._texts))

    def quality(self) -> dict[str, float | None]:
        """Silhouette (in a report space made for this alone; noise is a topic) and stability on the training reports.

        Each refit computes a new layout.
        """
        points = lsa_positions([self.segment(text) for text in self._texts], self.seed)

        def refit(places: np.ndarray, seed: int) -> np.ndarray:
            rows = self.plane.rows([self._texts[place] for place in places])
            there, row = np.unique(rows[rows >= 0], return_inverse=True)
            labels = np.full(len(rows), -1)
            labels[rows >= 0] = self._clustered(self.plane.refit(there, seed))[row]
            return labels

        return topic_quality(self._texts, points, self.assign(self._texts)[0], refit, self.seed)


class DenseGroups:
    """Assigns new points to the clusters of HDBSCAN.

    The mutual reachability of two points is the maximum of their distance and their core distances, the distances to
    the `min_samples`-th training point. The reach of a group is the mutual reachability to the nearest point outside,
    at which HDBSCAN's tree merges it with others. A point belongs to the group of its nearest grouped training point
    if it is within the group's reach, otherwise it is noise. This equals climbing the tree from that training point
    to the point's density, and reproduces the labels of training points (except for exact ties, which the tree
    decides).

    Source:
        Mutual reachability: Campello, Moulavi and Sander 2013, section 3. Prediction: McInnes, Healy and Astels 2017.

    Args:
        places_mC: training points.
        labels_m: labels of training points, from 0; `groups` is noise.
    """

    def __init__(self, places_mC: np.ndarray, labels_m: np.ndarray, groups: int, min_samples: int) -> None:
        self.places_mC = places_mC.astype(np.float64)
        self.labels_m = labels_m
        self.noise = groups
        # The algorithm of HDBSCAN: brute force rounds differently.
        self._near = NearestNeighbors(n_neighbors=min_samples, algorithm="kd_tree").fit(self.places_mC)
        self._core_m = self._near.kneighbors(self.places_mC)[0][:, -1]
        self.reach_G = np.full(self.noise, np.inf)
        for start in range(0, len(places_mC), CHUNK):
            rows = slice(start, start + CHUNK)
            to_groups, _ = self._to_groups(self.places_mC[rows])
            to_groups[labels_m[rows, None] == np.arange(self.noise)] = np.inf
            self.reach_G = np.minimum(self.reach_G, to_groups.min(axis=0))

    def _to_groups(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mutual reachability of points and the nearest point of each group, [n, G], and the nearest group, [n].

        If several are equally reachable by the point's own core distance, the group of the nearest point counts.
        """
        core_n = self._near.kneighbors(places)[0][:, -1]
        distance = cdist(places, self.places_mC)
        reachability = np.maximum(distance, np.maximum(core_n[:, None], self._core_m[None]))
        to_groups = np.stack(
            [reachability[:, self.labels_m == group].min(axis=1) for group in range(self.noise)], axis=1
        )
        as_near = (self.labels_m < self.noise) & (reachability == to_groups.min(axis=1, keepdims=True))
        return to_groups, self.labels_m[np.where(as_near, distance, np.inf).argmin(axis=1)]

    def assign(self, places: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The group of each point, int64 [n], and weights, float32 [n, G + 1], whose rows sum to 1; noise is the last.

        Weights are normalized densities: of a group, at which the point would join it; of noise, at which the nearest
        group ends. A density is the inverse of a distance to the power of C.

        Args:
            rows: index of the training point that each is, int64 [n], -1 for others; training points keep labels.
        """
        if len(places) == 0:
            return np.zeros(0, dtype=np.int64), np.zeros((0, self.noise + 1), dtype=np.float32)
        parts = [places[start : start + CHUNK].astype(np.float64) for start in range(0, len(places), CHUNK)]
        to_groups, nearest = (np.concatenate(found) for found in zip(*map(self._to_groups, parts)))
        within = to_groups.min(axis=1) < self.reach_G[nearest]
        labels = np.where(within, nearest, self.noise).astype(np.int64)
        labels[rows >= 0] = self.labels_m[rows[rows >= 0]]
        distances = np.maximum(np.column_stack([to_groups, self.reach_G[nearest]]), TINY)
        density = (distances.min(axis=1, keepdims=True) / distances) ** self.places_mC.shape[1]
        return labels, (density / density.sum(axis=1, keepdims=True)).astype(np.float32)
