"""K-means on a sample of many points, refined on all of them."""

from __future__ import annotations

import numpy as np
import pytest

from framework.topics import kmeans
from framework.topics.kmeans import KMeans, nearest, squared_distances


def points(count: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    return (4 * draw.normal(size=(6, 8))[draw.integers(6, size=count)] + draw.normal(size=(count, 8))).astype(
        np.float32
    )


def test_a_sample_finds_the_clusters_of_all_points(monkeypatch: pytest.MonkeyPatch) -> None:
    some = points(3000)
    totals = []
    for sample in (10_000, 500):
        monkeypatch.setattr(kmeans, "SAMPLE", sample)
        totals.append(nearest(some, KMeans(3, 20).centroids(some, 6, seed=1))[1].sum())
    assert totals[1] == pytest.approx(totals[0], rel=1e-4)
    assert totals[1] < 1.05 * 3000 * 8, "about the variance of a cluster"


def test_blocks_give_the_nearest_centroids_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    some = points(100)
    whole = squared_distances(some, some[:7])
    monkeypatch.setattr(kmeans, "BLOCK", 9)
    labels, least = nearest(some, some[:7])
    assert labels.tolist() == whole.argmin(1).tolist() and np.array_equal(least, whole.min(1))
