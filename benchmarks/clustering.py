"""Clusters report vectors beside scikit-learn.

64 dimensions, 18 topics, 5 initializations, as `faiss_kmeans` does. The results hold the sums of
squared distances (inertia) too. On a GPU ours is faiss there, and scikit-learn stays on the CPU.
"""

from __future__ import annotations

from importlib.metadata import packages_distributions
from typing import Any

import torch

# isort: split
import faiss
import numpy as np
from sklearn.cluster import KMeans as SkLearnKMeans

from benchmarks.rounds import compare, parser, start, write
from framework.topics.kmeans import KMeans, nearest

DEVICES = ("cpu", "cuda")
DIMENSIONS, TOPICS, RESTARTS = 64, 18, 5


def main() -> None:
    parse = parser(__doc__, DEVICES)
    parse.add_argument("--points", type=int, default=1_000_000)
    options = start(parse, quick={"points": 2000})
    if options.device == "cuda" and not faiss.get_num_gpus():
        parse.error("--device cuda: this faiss offers no GPU")
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
    packages = (*packages_distributions()["faiss"][:1], "scikit-learn")
    write([{**row, "inertia": inertia[row["who"]]} for row in rows], options, packages)


if __name__ == "__main__":
    main()
