"""Reports laid out in few dimensions by UMAP, so that density and distance between them can be seen and clustered.

Shapes: n reports, m different training reports, D dimensions of the embedding, C dimensions of the layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from framework.text.embedding import TextEmbedding


class UmapLayout:
    """Different training reports, laid out by UMAP with the cosine distance; unseen ones are placed among them.

    - Copies: the layout is of different reports, each once. With copies, the neighbours of a text that is there more
      than `neighbours` times would all be itself at distance 0, and so it would be cut off from all others. Copies
      lie where their text lies, and what clusters the places may count them. UMAP has no weights.
    - Unseen reports: each is placed alone, by UMAP's own transform. UMAP moves reports that it is given together by
      the strongest link among them and by shared draws, so that a report would lie elsewhere in other company.
    - A report of which the embedding knows nothing is not laid out, and lies in the middle.

    Source:
        McInnes, Healy and Melville 2018, arXiv 1802.03426.

    Args:
        name: of the distiller, for messages.
        neighbours: how many of the nearest, itself included, a report is to keep near; more show larger structure.
        components: C.
        min_dist: how near to one another reports may lie, as UMAP counts it; 0 packs groups tightest.
        seed: the same seed gives the same layout. UMAP runs in one thread then.
    """

    def __init__(
        self, name: str, embedding: TextEmbedding, *, neighbours: int, components: int, min_dist: float, seed: int
    ) -> None:
        if neighbours < 2:
            raise ValueError(
                f"distiller {name}: found neighbours {neighbours}, expected 2 or more: a report is its own"
            )
        umap_class(name)
        self.name = name
        self.embedding = embedding
        self.neighbours = neighbours
        self.components = components
        self.min_dist = min_dist
        self.seed = seed

    def fit(self, texts: Sequence[str]) -> UmapLayout:
        """Lays training reports out.

        Raises:
            ValueError: there are too few different reports.
        """
        different = list(dict.fromkeys(texts))
        vectors = self.embedding.fit(texts).embed(different)
        known = np.linalg.norm(vectors, axis=1) > 0
        self.vectors_mD, row = np.unique(vectors[known], axis=0, return_inverse=True)
        least = max(self.neighbours, self.components + 1) + 1  # the start of the layout wants C + 1 eigenvectors
        if len(self.vectors_mD) < least:
            raise ValueError(
                f"distiller {self.name}: {len(self.vectors_mD)} of {len(texts)} training reports differ, and a layout "
                f"of {self.neighbours} neighbours in {self.components} dimensions takes {least}; lower "
                "distiller.neighbours or distiller.components, or take another distiller"
            )
        rows = np.full(len(different), -1)
        rows[known] = row.reshape(-1)
        self._row_of_text = dict(zip(different, rows.tolist()))
        self._row_of_vector = {vector.tobytes(): row for row, vector in enumerate(self.vectors_mD)}
        self._layout = self._laid_out(self.vectors_mD, self.seed)
        self.places_mC = np.asarray(self._layout.embedding_, dtype=np.float32)
        return self

    def _laid_out(self, vectors: np.ndarray, seed: int) -> Any:
        umap = umap_class(self.name)(
            n_neighbors=min(self.neighbours, len(vectors) - 1),  # fewer in a small resample alone
            n_components=self.components,
            metric="cosine",
            min_dist=self.min_dist,
            random_state=seed % 2**32,
            n_jobs=1,
        )
        with _threads_kept():
            return umap.fit(vectors)

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """Which of the different training reports each text is, int64 [n]; -1 where none."""
        return np.array([self._row_of_text.get(text, -1) for text in texts], dtype=np.int64)

    def places(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Where reports lie, float32 [n, C], and whether the embedding knows anything of them, bool [n]."""
        unseen = [text for text in dict.fromkeys(texts) if text not in self._row_of_text]
        found = {text: self.places_mC[row] if row >= 0 else None for text, row in self._row_of_text.items()}
        found |= {text: self._place(vector_D) for text, vector_D in zip(unseen, self.embedding.embed(unseen))}
        known = np.array([found[text] is not None for text in texts], dtype=bool)
        places = np.tile(self.places_mC.mean(axis=0), (len(texts), 1))
        for number in np.flatnonzero(known).tolist():
            places[number] = found[texts[number]]
        return places, known

    def _place(self, vector_D: np.ndarray) -> np.ndarray | None:
        """Where an unseen report lies, [C]; None where nothing of it is known."""
        row = self._row_of_vector.get(vector_D.tobytes())
        if row is not None:
            return self.places_mC[row]
        if not vector_D.any():
            return None
        with _threads_kept():
            return np.asarray(self._layout.transform(vector_D[None])[0])

    def refit(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """Where training reports lie in a layout of these alone, from another seed: float32 [n, C].

        Args:
            rows: which of the different ones each is, see `rows`.
        """
        there, row = np.unique(rows[rows >= 0], return_inverse=True)
        found = np.asarray(self._laid_out(self.vectors_mD[there], seed).embedding_, dtype=np.float32)
        places = np.tile(found.mean(axis=0), (len(rows), 1))
        places[rows >= 0] = found[row]
        return places


@contextmanager
def _threads_kept() -> Iterator[None]:
    """numba, on which UMAP runs, sets the threads of OpenMP for the whole process, those of torch too."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def umap_class(name: str) -> Any:
    try:
        from umap import UMAP  # imports numba, which takes seconds
    except ImportError as error:
        raise ValueError(
            f"distiller {name} needs UMAP, which does not import here ({error}): pip install 'sonoscribe[umap]'"
        ) from None
    return UMAP
