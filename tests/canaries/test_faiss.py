"""What plugins/distiller/faiss_kmeans.py leans on in faiss; an upgrade that changes it fails here."""

import subprocess
import sys

import numpy as np
import pytest
import torch  # noqa: F401

# isort: split
import faiss


def points(n: int, d: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)


def test_torch_then_faiss_work_in_one_process():
    code = (
        "import torch, faiss, numpy as np; x = np.random.rand(500, 16).astype('float32');"
        "k = faiss.Kmeans(16, 5, seed=1); k.train(x); y = torch.from_numpy(k.centroids) @ torch.rand(16, 16);"
        "assert torch.isfinite(y).all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="about a faiss without GPU")
def test_the_gpu_flag_is_silently_ignored_without_one():
    """So the distiller calls `get_num_gpus` and logs the device; it cannot rely on the flag."""
    kmeans = faiss.Kmeans(8, 3, gpu=True, seed=1)
    kmeans.train(points(200))
    assert kmeans.gpu == 0 and type(kmeans.index) is faiss.IndexFlatL2


def test_points_are_sampled_by_default_and_a_large_maximum_takes_all():
    x = points(2000)
    for keys, sampled in ({}, True), ({"max_points_per_centroid": len(x)}, False):
        kmeans = faiss.Kmeans(8, 1, seed=1, **keys)
        kmeans.train(x)
        assert np.allclose(kmeans.centroids[0], x.mean(axis=0), atol=1e-4) != sampled


def test_the_same_seed_is_bit_identical():
    runs = []
    for seed in (1, 1, 2):
        kmeans = faiss.Kmeans(8, 9, seed=seed, max_points_per_centroid=3000)
        kmeans.train(points(3000))
        runs.append(kmeans.centroids)
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


def test_given_initial_centroids_are_used():
    x = points(300)
    kmeans = faiss.Kmeans(8, 4, niter=0, seed=1, min_points_per_centroid=1)
    kmeans.train(x, init_centroids=np.ascontiguousarray(x[10:14]))
    assert np.array_equal(kmeans.centroids, x[10:14])


def test_fewer_points_than_clusters_raise():
    """The distiller refuses this first, with the keys of the recipe."""
    with pytest.raises(RuntimeError, match="at least as large as number of clusters"):
        faiss.Kmeans(8, 9, seed=1).train(points(5))
