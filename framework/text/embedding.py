"""Report embeddings by several methods with one interface, for distillers to cluster.

Shapes: n reports, W words, D dimensions.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, Protocol, get_args

import numpy as np

from framework.registry.source import did_you_mean
from framework.runtime.errors import UserError
from framework.text.lsa import LSA_DIMENSIONS, ReportSpace, count_words, inverse_document_frequency
from framework.text.sentence_encoder import SentenceEncoder, encoder_folder, folder_identity

log = logging.getLogger(__name__)
EmbeddingName = Literal["counts", "tfidf", "lsa", "sentence_encoder"]
# Rows are dense with a column per word: 10,000 reports take 160 MB, and k-means in float64 five times as much.
WORD_LIMIT = 4096
Segment = Callable[[str], list[str]]


class TextEmbedding(Protocol):
    """A map from reports to vectors, fitted on training reports."""

    space: ReportSpace | None  # the fitted report space of `lsa`; None for other methods

    def fit(self, texts: Sequence[str]) -> TextEmbedding:
        """Fits the embedding on training reports and returns it.

        Raises:
            UserError: the reports have no words.
        """

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of reports, float32 [n, D]; zeros for a report without known words.

        With length 1, Euclidean and cosine distances agree, and vectors do not depend on the length of reports.
        """

    @property
    def identity(self) -> str:
        """Part of the key of cached results: changes if vectors may change with the same recipe, words and training
        reports, such as with other weights of a sentence encoder.
        """


def build_text_embedding(
    name: str, *, segment: Segment, seed: int, dimensions: int | None = None, encoder: str | None = None
) -> TextEmbedding:
    """The embedding of this name, not fitted.

    Args:
        name: `counts` of words, `tfidf`, `lsa` (a `ReportSpace`) or `sentence_encoder`.
        segment: splits a text into words; a sentence encoder does not use it.
        seed: of the singular value decomposition of `lsa`.
        dimensions: maximum number: for `lsa` of directions (default 64), for `counts` and `tfidf` of the words in most
            training reports (default 4,096). None for a sentence encoder, which has its own.
        encoder: of `sentence_encoder` only, see `framework.text.sentence_encoder.encoder_folder`.

    Raises:
        UserError: the name is unknown, a setting does not apply to it, or the sentence encoder does not load.
    """
    known = get_args(EmbeddingName)
    if name not in known:
        hint = did_you_mean(name, known).strip()
        raise UserError("unknown-name", f"text embedding '{name}'", expected=f"one of {', '.join(known)}", hint=hint)
    if name == "sentence_encoder":
        if not encoder:
            expected = "encoder: a folder, package:NAME/FOLDER or hub name"
            raise UserError("missing-key", "no encoder", place="embedding sentence_encoder", expected=expected)
        if dimensions is not None:
            found = f"dimensions: {dimensions} has no effect, since the encoder has its own"
            raise UserError("ignored-setting", found, place="embedding sentence_encoder", hint="Remove it.")
        return SentenceEmbedding(encoder)
    if encoder is not None:
        found = f"encoder: '{encoder}' has no effect"
        hint = "Remove it, or set embedding: sentence_encoder."
        raise UserError("ignored-setting", found, place=f"embedding {name}", hint=hint)
    if name == "lsa":
        return LatentSemanticEmbedding(segment, seed, LSA_DIMENSIONS if dimensions is None else dimensions)
    return WordEmbedding(segment, WORD_LIMIT if dimensions is None else dimensions, weighted=name == "tfidf")


class WordEmbedding:
    """A dimension per word: its count in a report, times its inverse document frequency if `weighted`.

    Source:
        Salton and Buckley 1988, Information Processing & Management 24(5); the smooth idf of scikit-learn.
    """

    identity = ""
    space: ReportSpace | None = None

    def __init__(self, segment: Segment, limit: int, *, weighted: bool) -> None:
        self.segment = segment
        self.limit = limit
        self.weighted = weighted
        self.words: list[str] = []
        self._weights = np.zeros(0)

    def fit(self, texts: Sequence[str]) -> WordEmbedding:
        """Selects the words in most training reports (ties in alphabetical order) and computes their weights."""
        word_lists = [self.segment(text) for text in texts]
        reports_with_word = Counter(word for words in word_lists for word in set(words))
        if not reports_with_word:
            raise UserError(
                "empty-report",
                f"{len(texts)} training reports have no words",
                hint="Check the reports and the tokenizer's segmentation.",
            )
        kept = sorted(reports_with_word, key=lambda word: (-reports_with_word[word], word))[: self.limit]
        if len(kept) < len(reports_with_word):
            log.warning(
                "reports are embedded by %d of their %d words: those in most training reports",
                len(kept),
                len(reports_with_word),
            )
        self.words = sorted(kept)
        frequency = np.array([reports_with_word[word] for word in self.words])
        self._weights = np.ones(len(self.words))
        if self.weighted:
            self._weights = inverse_document_frequency(frequency, len(texts))
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        assert self.words, "fit the embedding first"
        index = {word: row for row, word in enumerate(self.words)}
        rows = count_words([self.segment(text) for text in texts], index)
        rows.data *= self._weights[rows.indices]
        length = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
        rows.data /= np.repeat(length, np.diff(rows.indptr))  # a row of length 0 has no entry
        # Clustering expects a dense array; `limit` bounds its size.
        dense: np.ndarray = rows.astype(np.float32).toarray()
        return dense


class LatentSemanticEmbedding:
    """A `ReportSpace`, which is the attribute `space` after `fit`."""

    identity = ""

    def __init__(self, segment: Segment, seed: int, dimensions: int) -> None:
        self.segment = segment
        self.seed = seed
        self.dimensions = dimensions
        self.space: ReportSpace | None = None

    def fit(self, texts: Sequence[str]) -> LatentSemanticEmbedding:
        self.space = ReportSpace(self.dimensions, self.seed).fit([self.segment(text) for text in texts])
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        assert self.space is not None, "fit the embedding first"
        return self.space.embed([self.segment(text) for text in texts])


class SentenceEmbedding:
    """A pretrained sentence encoder, loaded at its first use; `fit` only checks the reports.

    Source:
        Reimers and Gurevych 2019, arXiv 1908.10084, section 3.
    """

    space: ReportSpace | None = None

    def __init__(self, encoder: str) -> None:
        self.name = encoder
        self.folder = encoder_folder(encoder)

    @cached_property
    def encoder(self) -> SentenceEncoder:
        return SentenceEncoder(self.name)

    @cached_property
    def identity(self) -> str:
        """A hash of the encoder's files."""
        return folder_identity(self.folder)

    def fit(self, texts: Sequence[str]) -> SentenceEmbedding:
        """Checks that the encoder knows the words of the training reports.

        Raises:
            UserError: the reports have no words, or more than half of their subwords are unknown.
        """
        if not any(text.strip() for text in texts):
            raise UserError("empty-report", f"{len(texts)} training reports have no words")
        unknown = self.encoder.unknown_fraction(sorted(set(texts)))
        if unknown > 0.5:
            raise UserError(
                "does-not-fit",
                f"'{self.name}' does not know {unknown:.0%} of the subwords of {len(texts)} training reports",
                place="sentence encoder",
                hint="Choose an encoder for their language.",
            )
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes each distinct text once, since real reports repeat each other hundreds of times.

        A text without words gets zeros, as in the other embeddings.
        """
        row_of: dict[str, int] = {}
        rows = np.array([row_of.setdefault(text, len(row_of)) for text in texts], dtype=np.int64)
        distinct = self.encoder.embed(list(row_of))
        distinct[[row for text, row in row_of.items() if not text.strip()]] = 0
        return distinct[rows]
