"""Clusters report vectors beside scikit-learn: `python -m benchmarks.clustering [--points 1000000] [--out FILE]`.

64 dimensions, 18 topics, 5 initializations, as `faiss_kmeans` does. Prints the squared distances too.
"""

from __future__ import annotations

from typing import Any

import torch

# isort: split
import faiss
import numpy as np
from sklearn.cluster import KMeans as SkLearnKMeans

from benchmarks.rounds import compare, parser, start, write
from framework.topics.kmeans import KMeans, nearest

DIMENSIONS, TOPICS, RESTARTS = 64, 18, 5


def main() -> None:
    parse = parser(__doc__)
    parse.add_argument("--points", type=int, default=1_000_000)
    options = start(parse)
    faiss.omp_set_num_threads(torch.get_num_threads())
    draw = np.random.default_rng(0)
    middles = draw.normal(size=(TOPICS, DIMENSIONS))
    points = 0.6 * middles[draw.integers(TOPICS, size=options.points)] + draw.normal(size=(options.points, DIMENSIONS))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    inertia: dict[str, float] = {}

    def ours() -> None:
        centroids = KMeans(RESTARTS, 50).centroids(points, TOPICS, seed=1)
        inertia["ours"] = float(nearest(points, centroids)[1].sum())

    def theirs() -> None:
        inertia["scikit-learn"] = float(
            SkLearnKMeans(TOPICS, n_init=RESTARTS, max_iter=50, random_state=1).fit(points).inertia_
        )

    what = f"k-means, {options.points:,} points"
    rows: list[Any] = compare(what, "points", options.points, {"ours": ours, "scikit-learn": theirs}, options.rounds)
    print(f"squared distances: ours {inertia['ours'] / inertia['scikit-learn'] - 1:+.3%} of scikit-learn's")
    write([{**row, "inertia": inertia[row["who"]]} for row in rows], options, ("faiss-cpu", "scikit-learn"))


if __name__ == "__main__":
    main()
