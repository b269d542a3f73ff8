"""Topics as distributions over words, for reports with several topics.

Shapes: n reports, K topics, W words.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt
from scipy import sparse
from sklearn.decomposition import LatentDirichletAllocation

from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.errors import UserError
from framework.text.lsa import ReportSpace, count_words, lsa_positions
from framework.topics.count import AUTO, TopicChoice, check_auto_range, choose_topic_count, require_distinct_reports
from framework.topics.quality import SAMPLE, TopicDescription, describe_topics, largest_first, topic_quality

log = logging.getLogger(__name__)
# Mixtures of reports move little after a few of their updates: a fit with `ROUGH` takes half the time of one with
# `EXACT`, scikit-learn's defaults, and its bound is within that of another start. What a fit is used for is `EXACT`.
ROUGH: dict[str, Any] = {"max_doc_update_iter": 20, "mean_change_tol": 0.03}
EXACT: dict[str, Any] = {"max_doc_update_iter": 100, "mean_change_tol": 1e-3}


@register("distiller", "lda")
class LDA:
    """Latent Dirichlet allocation on word counts, fitted online by scikit-learn.

    On short, repetitive reports some topics stay empty: of 18 topics, 9 were the strongest of any of 1,200 phantom
    reports. Then it fits again with the number of topics that were not empty, and warns; of more than 2,000 reports,
    2,000 drawn by the seed find that number first. `faiss_kmeans` fills every topic there, is more stable, and is
    faster by far. `topics: auto` has one start per fit; a narrow `auto_range` reduces its time.

    Source:
        Blei, Ng and Jordan 2003, JMLR 3; fitted online: Hoffman, Blei and Bach 2010, NeurIPS 23.

    Args:
        topics: Number of topics; `auto` chooses it by silhouette and stability on the training reports. [topics]
        auto_range: Smallest and largest number that `auto` tries; null for 2 to 30. [topics]
        restarts: Number of fits with different initial values; the one with the highest likelihood bound on at most
            2,000 reports is kept, since single fits often merge two topics. [fits]
        passes: Passes over the training reports. [passes]
        batch: Reports per update. [reports]
        min_reports: Leaves out words in fewer training reports. [reports]
        max_share: Leaves out words in a larger share of the training reports. [share of reports]
    """

    def __init__(
        self,
        *,
        segment: Callable[[str], list[str]],
        seed: int,
        topics: PositiveInt | Literal["auto"] = 18,
        auto_range: tuple[int, int] | None = None,
        restarts: PositiveInt = 3,
        passes: PositiveInt = 5,
        batch: PositiveInt = 128,
        min_reports: PositiveInt = 2,
        max_share: Fraction = 0.9,
    ) -> None:
        check_auto_range("lda", topics, auto_range)
        self.segment = segment
        self.seed = seed
        self.topics = topics
        self.topic_count: Any = None if topics == AUTO else topics  # int once fitted
        self.auto_range = auto_range
        self.restarts = restarts
        self.passes = passes
        self.batch = batch
        self.min_reports = min_reports
        self.max_share = max_share
        self.space: ReportSpace | None = None  # LDA has no report space
        self.choice: TopicChoice | None = None

    def fit(self, texts: Sequence[str]) -> None:
        """Finds the topics of training reports, numbered from the largest to the smallest.

        Raises:
            UserError: there are fewer distinct reports than topics, or no word is left.
        """
        self._texts = list(texts)
        self._word_lists = [self.segment(text) for text in texts]
        require_distinct_reports("lda", self.topics, self._word_lists)
        found = Counter(word for words in self._word_lists for word in set(words))
        kept = sorted(w for w, n in found.items() if self.min_reports <= n <= self.max_share * len(texts))
        if not kept:
            raise UserError(
                "out-of-range",
                f"none of {len(found)} words is in at least {self.min_reports} and at most {self.max_share:.0%} of "
                f"{len(texts)} training reports",
                place="distiller",
                hint="Lower distiller.min_reports or raise distiller.max_share.",
            )
        self._index = {word: row for row, word in enumerate(kept)}
        self._counts = count_words(self._word_lists, self._index)
        if self.topics == AUTO:
            self.choice = choose_topic_count(
                "lda", lsa_positions(self._word_lists, self.seed), self._clusterer, self.auto_range, self.seed
            )
            self.topic_count = self.choice.chosen
        self._fit_without_empty_topics()

    def _fit_without_empty_topics(self) -> None:
        """Fits, and again with fewer topics while some are the strongest of no report.

        Of many reports a sample finds the number first, so that few fits are on all of them.
        """
        asked = self.topic_count
        sample = _at_most_sample(self._counts, self.seed)
        for counts in [self._counts] if sample is self._counts else [sample, self._counts]:
            while True:
                self._model = self._fitted(counts, self.topic_count, self.seed, self.restarts)
                self._order = np.arange(self.topic_count)
                labels, _ = self._weigh(counts)
                used = len(np.unique(labels))
                if used == self.topic_count:
                    break
                self.topic_count = used
        if used < asked:
            log.warning(
                "distiller lda: %d topics in place of %d, since others were the strongest of no training report",
                used,
                asked,
            )
        self._order = largest_first(labels, self.topic_count)

    def _fitted(self, counts: sparse.csr_matrix, topics: int, seed: int, restarts: int) -> LatentDirichletAllocation:
        fits = []
        for start in range(restarts):
            model = LatentDirichletAllocation(
                n_components=topics,
                learning_method="online",
                max_iter=self.passes,
                batch_size=self.batch,
                random_state=(seed * 1_000_003 + start) % 2**32,  # neighbouring seeds share no start
                n_jobs=1,  # more jobs change the result and are not faster
                **ROUGH,
            )
            fits.append(model.fit(counts).set_params(**EXACT))
        scored = _at_most_sample(counts, seed)  # a score of all takes as long as several passes
        return max(fits, key=lambda model: model.score(scored)) if restarts > 1 else fits[0]

    def _clusterer(self, places: np.ndarray, seed: int) -> Callable[[int], np.ndarray]:
        """Fits with one start: `auto` needs many fits, and a number that depends on the start is not stable."""
        counts = self._counts[places]
        return lambda topics: self._fitted(counts, topics, seed, restarts=1).transform(counts).argmax(axis=1)

    def _weigh(self, counts: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        # scikit-learn refuses to transform zero reports.
        found = self._model.transform(counts) if counts.shape[0] else np.zeros((0, self.topic_count))
        weights = found[:, self._order]
        return weights.argmax(axis=1), weights.astype(np.float32)

    def assign(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The strongest topic of each report, int64 [n], and its mixture, float32 [n, K], whose rows sum to 1.

        A report without a known word has a uniform mixture and gets topic 0.
        """
        return self._weigh(count_words([self.segment(text) for text in texts], self._index))

    def positions(self, texts: Sequence[str]) -> np.ndarray:
        """Square roots of the mixtures, float32 [n, K]: Euclidean distances between them are Hellinger distances."""
        return np.sqrt(self.assign(texts)[1])

    def describe(self) -> list[TopicDescription]:
        """Words, size and an example of each topic, from the training reports."""
        labels, weights = self._weigh(self._counts)
        return describe_topics(self._texts, self._word_lists, labels, weights)

    def quality(self) -> dict[str, float | None]:
        """Silhouette (in a report space made for this alone) and stability on the training reports."""

        def refit(places: np.ndarray, seed: int) -> np.ndarray:
            counts = self._counts[places]
            return self._fitted(counts, self.topic_count, seed, self.restarts).transform(counts).argmax(axis=1)

        return topic_quality(
            self._texts, lsa_positions(self._word_lists, self.seed), self._weigh(self._counts)[0], refit, self.seed
        )


def _at_most_sample(counts: sparse.csr_matrix, seed: int) -> sparse.csr_matrix:
    """The reports, or `SAMPLE` of them drawn by the seed."""
    if counts.shape[0] <= SAMPLE:
        return counts
    return counts[np.sort(np.random.default_rng(seed).choice(counts.shape[0], SAMPLE, replace=False))]
