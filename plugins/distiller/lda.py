"""Topics as mixtures of words, for data where one report speaks of several things.

Shapes: n reports, K topics, W words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from pydantic import PositiveInt
from sklearn.decomposition import LatentDirichletAllocation

from framework.registry import register
from framework.report_space import ReportSpace, count_words
from framework.topic_measures import TopicCard, by_size, measure, topic_cards
from framework.values import Fraction

# Only to measure silhouettes where `faiss_kmeans` does by default, so that the two can be compared.
MEASURED_IN = 64


@register("distiller", "lda")
class LDA:
    """Latent Dirichlet allocation on word counts, fitted online by scikit-learn.

    On short reports that repeat each other some topics stay empty: of 18, 9 were the strongest of any among 1,200
    phantom reports. `faiss_kmeans` fills every topic there, is steadier, and takes 0.7 s of CPU time instead of 42.

    Source:
        Blei, Ng and Jordan 2003, JMLR 3; fitted online: Hoffman, Blei and Bach 2010, NeurIPS 23.

    Args:
        topics: number of topics. [topics]
        restarts: fits from different starting points; the one with the highest bound on the likelihood is kept, since
            single fits often end with two topics in one. [fits]
        passes: over the training reports. [passes]
        batch: reports an update. [reports]
        min_reports: words in fewer training reports than this are left out. [reports]
        max_share: words in a larger share of the training reports than this are left out (they tell no topic).
            [share of reports]
    """

    def __init__(
        self,
        *,
        segment: Callable[[str], list[str]],
        seed: int,
        topics: PositiveInt = 18,
        restarts: PositiveInt = 3,
        passes: PositiveInt = 5,
        batch: PositiveInt = 128,
        min_reports: PositiveInt = 2,
        max_share: Fraction = 0.9,
    ) -> None:
        self.segment = segment
        self.seed = seed
        self.topic_count = topics
        self.restarts = restarts
        self.passes = passes
        self.batch = batch
        self.min_reports = min_reports
        self.max_share = max_share
        self.space: ReportSpace | None = None  # topics here are mixtures of words, and lie in no space

    def fit(self, texts: Sequence[str]) -> None:
        """Finds the topics of training reports; they are numbered from the largest to the smallest.

        Raises:
            ValueError: there are fewer different reports than topics, or no word is left.
        """
        self._texts = list(texts)
        self._word_lists = [self.segment(text) for text in texts]
        different = len({tuple(sorted(words)) for words in self._word_lists})
        if different < self.topic_count:
            raise ValueError(
                f"distiller lda: {self.topic_count} topics asked of {len(texts)} training reports, of which "
                f"{different} differ in their words; set distiller.topics to {max(different, 1)} or less"
            )
        found = Counter(word for words in self._word_lists for word in set(words))
        kept = sorted(w for w, n in found.items() if self.min_reports <= n <= self.max_share * len(texts))
        if not kept:
            raise ValueError(
                f"distiller lda: none of {len(found)} words stands in at least {self.min_reports} and at most "
                f"{self.max_share:.0%} of {len(texts)} training reports; lower distiller.min_reports or raise "
                "distiller.max_share"
            )
        self._index = {word: row for row, word in enumerate(kept)}
        self._counts = count_words(self._word_lists, self._index)
        self._model = self._fitted(self.seed)
        self._order = np.arange(self.topic_count)
        self._order = by_size(self._weigh(self._counts)[0], self.topic_count)

    def _fitted(self, seed: int) -> LatentDirichletAllocation:
        fits = []
        for start in range(self.restarts):
            model = LatentDirichletAllocation(
                n_components=self.topic_count,
                learning_method="online",
                max_iter=self.passes,
                batch_size=self.batch,
                random_state=(seed * 1_000_003 + start) % 2**32,  # seeds next to each other share no start
                n_jobs=1,  # more jobs change the result and have not been quicker
            )
            fits.append(model.fit(self._counts))
        return max(fits, key=lambda model: model.score(self._counts))

    def _weigh(self, counts: object) -> tuple[np.ndarray, np.ndarray]:
        weights = self._model.transform(counts)[:, self._order]
        return weights.argmax(axis=1), weights.astype(np.float32)

    def assign(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The strongest topic of each report, int64 [n], and its mixture, float32 [n, K], whose rows sum to 1.

        A report without a known word has an even mixture, and goes to topic 0.
        """
        return self._weigh(count_words([self.segment(text) for text in texts], self._index))

    def positions(self, texts: Sequence[str]) -> np.ndarray:
        """The roots of the mixtures, float32 [n, K]: straight distances between them are Hellinger's."""
        return np.sqrt(self.assign(texts)[1])

    def describe(self) -> list[TopicCard]:
        """Words, size and an example of each topic, from the training reports."""
        labels, weights = self._weigh(self._counts)
        return topic_cards(self._texts, self._word_lists, labels, weights)

    def quality(self) -> dict[str, float | None]:
        """Silhouette (in a report space made for this alone) and stability on the training reports."""
        points = ReportSpace(MEASURED_IN, self.seed).fit(self._word_lists).embed(self._word_lists)
        labels, _ = self._weigh(self._counts)

        def refit(seed: int) -> np.ndarray:
            return self._fitted(seed).transform(self._counts).argmax(axis=1)

        return measure(self._texts, points, labels, refit, self.seed)
