"""Topics as dense groups of a UMAP layout of the reports, by HDBSCAN: the knowledge distiller of SGF (MICCAI 2022).

Shapes: n reports, m different training reports, K topics, D dimensions of the embedding, C dimensions of the layout.
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
from framework.text.embedding import build_text_embedding
from framework.text.lsa import ReportSpace, lsa_positions
from framework.topics.quality import TopicDescription, describe_topics, largest_first, topic_quality
from framework.topics.umap import UmapLayout

AT_A_TIME = 512  # reports, whose distances to all of training take memory
TINY = 1e-9  # a distance; its inverse is a finite density


@register("distiller", "umap_hdbscan")
class UmapHdbscan:
    """A text embedding, laid out in few dimensions by UMAP, then HDBSCAN, which finds by itself how many topics.

    Reports between the groups are noise, which is a topic of its own, always the last. Each different report counts
    once: copies lie at distance 0, and a text with `min_samples` of them would be the densest group of all.
    On phantom reports of the breast it found 21 groups among 1,200 and 2 among 400. Time: as `umap_kmeans`.

    Source:
        Li et al. 2022, MICCAI, arXiv 2206.09378 (SGF), and Li et al. 2024, arXiv 2406.00644. UMAP: McInnes, Healy and
        Melville 2018, arXiv 1802.03426. HDBSCAN: Campello, Moulavi and Sander 2013, PAKDD. Unseen reports: the
        approximate prediction of McInnes, Healy and Astels 2017, JOSS 2(11).

    Args:
        embedding: what is laid out: counts of words, TF-IDF, its truncated SVD (`lsa`), or a sentence encoder's view.
        encoder: the sentence encoder: a folder, package:NAME/FOLDER, or a name on the model hub.
        dimensions: of the embedding; unless given 64 for `lsa`, and the 4,096 words of most reports for `counts` and
            `tfidf`. [dimensions]
        neighbours: nearest reports, itself included, that UMAP keeps near a report. [reports]
        components: of the layout. [dimensions]
        min_dist: how near to one another reports may lie in the layout, as UMAP counts it.
        min_cluster_size: a smaller group is no topic. [different reports]
        min_samples: a report's density is taken from the distance to so many, itself included; more make more noise.
            As `min_cluster_size` unless given. [different reports]
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
            raise ValueError(
                "distiller umap_hdbscan: found min_cluster_size 1, expected 2 or more: one report is no group"
            )
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
            ValueError: there are too few different reports, or all of them are noise.
        """
        self._texts = list(texts)
        self.plane.fit(self._texts)
        self.space = self.embedding.space
        found = self._clustered(self.plane.places_mC)
        if found.max() < 0:
            raise ValueError(
                f"distiller umap_hdbscan: each of {len(found)} different training reports is noise; lower "
                f"distiller.min_cluster_size (here {self.min_cluster_size}) or distiller.min_samples (here "
                f"{self.min_samples})"
            )
        rows = self.plane.rows(self._texts)
        of_reports = np.where(rows >= 0, found[rows], -1)  # copies count in a topic's size
        order = largest_first(of_reports[of_reports >= 0], found.max() + 1)
        number = np.append(np.argsort(order), len(order))  # of noise, found as -1, the last
        self.topic_count = len(order) + 1
        self._groups = DenseGroups(self.plane.places_mC, number[found], len(order), self.min_samples)

    def _clustered(self, places: np.ndarray) -> np.ndarray:
        """HDBSCAN's own labels; -1 for noise."""
        if len(places) < max(self.min_samples, self.min_cluster_size):
            return np.full(len(places), -1)
        return (
            HDBSCAN(min_cluster_size=self.min_cluster_size, min_samples=self.min_samples, copy=True).fit(places).labels_
        )

    def assign(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The topic of each report, int64 [n], and soft weights, float32 [n, K], whose rows sum to 1.

        A training text has the topic that HDBSCAN gave it. An unseen one is placed by UMAP, whose layout stays, and
        joins a topic by density; see `DenseGroups`. One of which the embedding knows nothing is noise.
        """
        places, known = self.plane.places(texts)
        labels, weights = self._groups.assign(places, self.plane.rows(texts))
        labels[~known], weights[~known] = self.topic_count - 1, np.eye(self.topic_count)[-1]
        return labels, weights

    def positions(self, texts: Sequence[str]) -> np.ndarray:
        """Where reports lie in the layout, float32 [n, C]."""
        return self.plane.places(texts)[0]

    def describe(self) -> list[TopicDescription]:
        """Words, size and an example of each topic, from the training reports."""
        words = [self.segment(text) for text in self._texts]
        return describe_topics(self._texts, words, *self.assign(self._texts))

    def quality(self) -> dict[str, float | None]:
        """Silhouette (in a report space made for this alone; noise is a topic) and stability on the training reports.

        Each refit lays the reports out anew.
        """
        points = lsa_positions([self.segment(text) for text in self._texts], self.seed)

        def refit(seed: int) -> np.ndarray:
            rows = self.plane.rows(self._texts)
            found = self._clustered(self.plane.refit(np.arange(len(self.plane.places_mC)), seed))
            return np.where(rows >= 0, found[rows], -1)

        return topic_quality(self._texts, points, self.assign(self._texts)[0], refit, self.seed)


class DenseGroups:
    """The groups that HDBSCAN found, as a rule for further points.

    The distance of two points is their mutual reachability: the largest of the distance between them and of their core
    distances, a core distance being that to the `min_samples`-th training point. A group reaches as far as the
    nearest point outside: at this distance, the inverse of a density, HDBSCAN's tree joins it with others. A point
    belongs to the group of its nearest grouped training point if that is within the group's reach, else it is noise.
    This is what climbing the tree from that training point to the point's density ends at, and gives training points
    back the labels they had (but for exact ties, where the tree decides).

    Source:
        Mutual reachability: Campello, Moulavi and Sander 2013, section 3. Prediction: McInnes, Healy and Astels 2017.

    Args:
        places_mC: training points.
        labels_m: of each, from 0; `groups` is noise.
    """

    def __init__(self, places_mC: np.ndarray, labels_m: np.ndarray, groups: int, min_samples: int) -> None:
        self.places_mC = places_mC.astype(np.float64)
        self.labels_m = labels_m
        self.noise = groups
        # As HDBSCAN does: the brute search would round otherwise.
        self._near = NearestNeighbors(n_neighbors=min_samples, algorithm="kd_tree").fit(self.places_mC)
        self._core_m = self._near.kneighbors(self.places_mC)[0][:, -1]
        self.reach_G = np.full(self.noise, np.inf)
        for start in range(0, len(places_mC), AT_A_TIME):
            rows = slice(start, start + AT_A_TIME)
            to_groups, _ = self._to_groups(self.places_mC[rows])
            to_groups[labels_m[rows, None] == np.arange(self.noise)] = np.inf
            self.reach_G = np.minimum(self.reach_G, to_groups.min(axis=0))

    def _to_groups(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mutual reachability of points and the nearest point of each group, [n, G], and the nearest group, [n].

        Where a point's own core distance makes several equally reachable, the nearest is that of the nearest point.
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

        A group's weight is the density at which the point would join it, that of noise the density at which the nearest
        group ends, all over their sum; a density is the inverse of a distance to the power of C, its volume.

        Args:
            rows: which training point each is, int64 [n]; -1 where none. Their labels stay.
        """
        if len(places) == 0:
            return np.zeros(0, dtype=np.int64), np.zeros((0, self.noise + 1), dtype=np.float32)
        parts = [places[start : start + AT_A_TIME].astype(np.float64) for start in range(0, len(places), AT_A_TIME)]
        to_groups, nearest = (np.concatenate(found) for found in zip(*map(self._to_groups, parts)))
        within = to_groups.min(axis=1) < self.reach_G[nearest]
        labels = np.where(within, nearest, self.noise).astype(np.int64)
        labels[rows >= 0] = self.labels_m[rows[rows >= 0]]
        distances = np.maximum(np.column_stack([to_groups, self.reach_G[nearest]]), TINY)
        density = (distances.min(axis=1, keepdims=True) / distances) ** self.places_mC.shape[1]
        return labels, (density / density.sum(axis=1, keepdims=True)).astype(np.float32)
