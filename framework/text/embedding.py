"""Where reports lie as vectors, by several methods behind one door: distillers cluster what `embed` gives.

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
from framework.text.lsa import LSA_DIMENSIONS, ReportSpace, count_words, inverse_document_frequency
from framework.text.sentence_encoder import SentenceEncoder, encoder_folder, folder_identity

log = logging.getLogger(__name__)
EmbeddingName = Literal["counts", "tfidf", "lsa", "sentence_encoder"]
# Rows are dense: a column a word, and 10,000 reports of so many words take 160 MB; k-means, which measures in float64,
# takes five times that at its peak.
WORD_LIMIT = 4096
Segment = Callable[[str], list[str]]


class TextEmbedding(Protocol):
    """A map from reports to vectors, fitted on training reports alone."""

    space: ReportSpace | None  # the report space behind it, once fitted, where there is one (`lsa`)

    def fit(self, texts: Sequence[str]) -> TextEmbedding:
        """Learns what it needs of training reports, and gives itself.

        Raises:
            ValueError: there is no report, or no word in any.
        """

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Directions of reports, float32 [n, D], each of length 1; zeros where nothing of a report is known.

        Length 1 makes Euclidean and cosine distances agree, and a long report is no further out than a short one.
        """

    @property
    def identity(self) -> str:
        """Changes whenever the same text could lie elsewhere for another reason than the recipe's keys, the words
        that `segment` gives and the training reports: the part that a key of cached results has to hold beside these.
        """


def build_text_embedding(
    name: str, *, segment: Segment, seed: int, dimensions: int | None = None, encoder: str | None = None
) -> TextEmbedding:
    """The embedding of this name, not fitted yet.

    Args:
        name: `counts` of words, `tfidf`, `lsa` (a `ReportSpace`) or `sentence_encoder`.
        segment: cuts a text into words; a sentence encoder cuts for itself and does not ask it.
        seed: of the singular value decomposition of `lsa`.
        dimensions: at most so many: for `lsa` directions (default 64), for `counts` and `tfidf` the words that stand
            in most training reports (default 4,096). A sentence encoder has its own number, and takes none here.
        encoder: the sentence encoder, as `framework.text.sentence_encoder.encoder_folder` reads it; no other takes one.

    Raises:
        ValueError: the name is unknown, a setting does not go with it, or the sentence encoder does not load.
    """
    known = get_args(EmbeddingName)
    if name not in known:
        raise ValueError(f"unknown text embedding '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}")
    if name == "sentence_encoder":
        if not encoder:
            raise ValueError("embedding sentence_encoder needs an `encoder`: a folder, package:NAME/FOLDER or hub name")
        if dimensions is not None:
            raise ValueError(f"embedding sentence_encoder has its encoder's width; leave out dimensions: {dimensions}")
        return SentenceEmbedding(encoder)
    if encoder is not None:
        raise ValueError(
            f"embedding {name} reads no encoder; leave out '{encoder}', or set embedding: sentence_encoder"
        )
    if name == "lsa":
        return LatentSemanticEmbedding(segment, seed, LSA_DIMENSIONS if dimensions is None else dimensions)
    return WordEmbedding(segment, WORD_LIMIT if dimensions is None else dimensions, weighted=name == "tfidf")


class WordEmbedding:
    """A dimension a word: how often it stands in a report, times its inverse document frequency if `weighted`.

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
        """Chooses the words (those in most training reports, of equals the first in order) and weighs them."""
        word_lists = [self.segment(text) for text in texts]
        reports_with_word = Counter(word for words in word_lists for word in set(words))
        if not reports_with_word:
            raise ValueError(
                f"cannot embed reports by their words: {len(texts)} training reports without a single word; "
                "check the reports and the tokenizer's segmentation"
            )
        kept = sorted(reports_with_word, key=lambda word: (-reports_with_word[word], word))[: self.limit]
        if len(kept) < len(reports_with_word):
            log.warning(
                "reports are embedded by %d of their %d words, those in most training reports",
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
        # Dense once, and in the end, as what clusters it expects; `limit` bounds it.
        dense: np.ndarray = rows.astype(np.float32).toarray()
        return dense


class LatentSemanticEmbedding:
    """A `ReportSpace`, fitted on texts. What it learned is its attribute `space`."""

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
    """A pretrained sentence encoder; fitting teaches it nothing. It is loaded when first asked for a text.

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
        """A hash of the encoder's files: another model in the same folder is another embedding."""
        return folder_identity(self.folder)

    def fit(self, texts: Sequence[str]) -> SentenceEmbedding:
        """Checks that the encoder can read the training reports.

        Raises:
            ValueError: there is no word in any, or the encoder knows less than half of their pieces.
        """
        if not any(text.strip() for text in texts):
            raise ValueError(f"cannot embed reports: {len(texts)} training reports without a single word")
        unknown = self.encoder.unknown_share(sorted(set(texts)))
        if unknown > 0.5:
            raise ValueError(
                f"sentence encoder: '{self.name}' does not know {unknown:.0%} of the pieces of {len(texts)} training "
                "reports; choose one for their language"
            )
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Each different text is encoded once: real reports repeat each other hundreds of times.

        A text without a word lies at the origin, as in the other embeddings.
        """
        places: dict[str, int] = {}
        where = np.array([places.setdefault(text, len(places)) for text in texts], dtype=np.int64)
        different = self.encoder.embed(list(places))
        different[[row for text, row in places.items() if not text.strip()]] = 0
        return different[where]
