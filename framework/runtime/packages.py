"""Versions of installed packages, by name alone."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

# Whose versions are stored with a run. One of faiss-cpu and faiss-gpu is always absent.
PACKAGES = (
    "sonoscribe",
    "torch",
    "accelerate",
    "deepspeed",
    "transformers",
    "faiss-cpu",
    "faiss-gpu",
    "scikit-learn",
    "numpy",
    "rjieba",
)


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed.

    Each is looked up by its name: `importlib.metadata.distributions()` reads the files of every package on the path,
    and fails if one that is none of ours is not UTF-8.
    """
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
