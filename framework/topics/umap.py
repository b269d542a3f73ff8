"""UMAP of report embeddings, for distillers that cluster by density or distance.

Shapes: n reports, m distinct training reports, D dimensions of the embedding, C dimensions of the UMAP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from framework.runtime.errors import UserError
from framework.text.embedding import TextEmbedding


class UmapLayout:
    """UMAP of the distinct training reports by cosine distance, into which other reports are projected.

    - Copies: UMAP is fitted on distinct reports. With copies, all neighbours of a text with more than `neighbours`
      copies would be the text itself at distance 0, which isolates it. Copies get the position of their text; UMAP has
      no sample weights.
    - Other reports are transformed one at a time: in UMAP, the position of a report depends on the others that are
      transformed with it.
    - A report whose embedding is zero gets the mean position.

    Source:
        McInnes, Healy and Melville 2018, arXiv 1802.03426.

    Args:
        name: of the distiller, for messages.
        neighbours: UMAP's n_neighbors, the report itself included; larger values show larger structure.
        components: C.
        min_dist: UMAP's minimum distance between points; 0 packs groups most tightly.
        seed: makes UMAP deterministic, in one thread.

    Raises:
        UserError: `neighbours` is below 2, or UMAP is not installed.
    """

    def __init__(
        self, name: str, embedding: TextEmbedding, *, neighbours: int, components: int, min_dist: float, seed: int
    ) -> None:
        if neighbours < 2:
            raise UserError(
                "out-of-range",
                f"neighbours is {neighbours}",
                place=f"distiller {name}",
                expected="2 or more, since a report is its own neighbour",
            )
        umap_class(name)
        self.name = name
        self.embedding = embedding
        self.neighbours = neighbours
        self.components = components
        self.min_dist = min_dist
        self.seed = seed

    def fit(self, texts: Sequence[str]) -> UmapLayout:
        """Fits UMAP on training reports.

        Raises:
            UserError: there are too few distinct reports.
        """
        different = list(dict.fromkeys(texts))
        vectors = self.embedding.fit(texts).embed(different)
        known = np.linalg.norm(vectors, axis=1) > 0
        self.vectors_mD, row = np.unique(vectors[known], axis=0, return_inverse=True)
        least = max(self.neighbours, self.components + 1) + 1  # UMAP's initialization needs C + 1 eigenvectors
        if len(self.vectors_mD) < least:
            raise UserError(
                "too-few-reports",
                f"{len(self.vectors_mD)} of {len(texts)} training reports are distinct",
                place=f"distiller {self.name}",
                expected=f"{least} for {self.neighbours} neighbours in {self.components} dimensions",
                hint="Lower distiller.neighbours or distiller.components, or use another distiller.",
            )
        rows = np.full(len(different), -1)
        rows[known] = row.reshape(-1)
        self._row_of_text = dict(zip(different, rows.tolist()))
        self._row_of_vector = {vector.tobytes(): row for row, vector in enumerate(self.vectors_mD)}
        self._umap = self._fit_umap(self.vectors_mD, self.seed)
        self.places_mC = np.asarray(self._umap.embedding_, dtype=np.float32)
        return self

    def _fit_umap(self, vectors: np.ndarray, seed: int) -> Any:
        umap = umap_class(self.name)(
            n_neighbors=min(self.neighbours, len(vectors) - 1),  # fewer only in a small resample
            n_components=self.components,
            metric="cosine",
            min_dist=self.min_dist,
            random_state=seed % 2**32,
            n_jobs=1,
        )
        with _threads_kept():
            return umap.fit(vectors)

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """Index of each text among the distinct training reports, int64 [n]; -1 if it is none of them."""
        return np.array([self._row_of_text.get(text, -1) for text in texts], dtype=np.int64)

    def places(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Positions of reports, float32 [n, C], and whether their embedding is not zero, bool [n]."""
        unseen = [text for text in dict.fromkeys(texts) if text not in self._row_of_text]
        found = {text: self.places_mC[row] if row >= 0 else None for text, row in self._row_of_text.items()}
        found |= {text: self._place(vector_D) for text, vector_D in zip(unseen, self.embedding.embed(unseen))}
        known = np.array([found[text] is not None for text in texts], dtype=bool)
        places = np.tile(self.places_mC.mean(axis=0), (len(texts), 1))
        for number in np.flatnonzero(known).tolist():
            places[number] = found[texts[number]]
        return places, known

    def _place(self, vector_D: np.ndarray) -> np.ndarray | None:
        """Position of another report, [C]; None if its embedding is zero."""
        row = self._row_of_vector.get(vector_D.tobytes())
        if row is not None:
            return self.places_mC[row]
        if not vector_D.any():
            return None
        with _threads_kept():
            return np.asarray(self._umap.transform(vector_D[None])[0])

    def refit(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """Positions of some training reports in a UMAP of these only, with another seed, float32 [n, C].

        Args:
            rows: indices of the reports, from `rows`.
        """
        there, row = np.unique(rows[rows >= 0], return_inverse=True)
        found = np.asarray(self._fit_umap(self.vectors_mD[there], seed).embedding_, dtype=np.float32)
        places = np.tile(found.mean(axis=0), (len(rows), 1))
        places[rows >= 0] = found[row]
        return places


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Restores torch's threads: numba, which UMAP uses, sets the OpenMP threads of the whole process."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def umap_class(name: str) -> Any:
    try:
        from umap import UMAP  # imports numba, which takes seconds
    except ImportError as error:
        raise UserError(
            "missing-package",
            f"UMAP does not import: {error}",
            place=f"distiller {name}",
            hint="pip install 'sonoscribe[umap]'",
        ) from None
    return UMAP
