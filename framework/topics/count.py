"""How many topics: a number of the recipe, or the one that the training reports speak for.

Shapes: n reports, K topics, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from framework.topics.quality import silhouette

log = logging.getLogger(__name__)
AUTO = "auto"
RANGE = (2, 30)  # of topics, where a recipe gives no auto_range
MOST = 15  # numbers that are tried; a wider range is tried at equal ratios
RESAMPLES = 10
SHARE = 0.8  # of the different reports, in a resample

# Clusters those training reports whose places are given: the places, int64 [m], and a seed -> (K -> labels, int64 [m]).
# In two steps, since much of the work can be the same for every K.
Clusterer = Callable[[np.ndarray, int], Callable[[int], np.ndarray]]


@dataclass(frozen=True)
class TopicChoice:
    """Why there are so many topics: a row of each list for each number that was tried."""

    chosen: int
    counts: list[int]
    silhouette: list[float]
    stability: list[float]
    score: list[float]  # the mean of both
    error: list[float]  # the standard error of the score


def check_auto_range(name: str, topics: int | str, auto_range: tuple[int, int] | None) -> None:
    """Checks a distiller's two keys together.

    Raises:
        ValueError: the range is empty, below 2, or would be ignored.
    """
    if auto_range is None:
        return
    if topics != AUTO:
        raise ValueError(
            f"distiller {name}: auto_range {list(auto_range)} is for topics: auto, and topics is {topics}; "
            "take one of them out"
        )
    low, high = auto_range
    if not 2 <= low <= high:
        raise ValueError(
            f"distiller {name}: found auto_range {list(auto_range)}, expected [from, to] with 2 <= from <= to"
        )


def require_distinct_reports(name: str, topics: int | str, word_lists: Sequence[Sequence[str]]) -> None:
    """Raises ValueError where fewer reports differ in their words than there are to be topics, if it is a number."""
    if topics != AUTO:
        require_distinct(name, int(topics), len(word_lists), len({tuple(sorted(words)) for words in word_lists}))


def require_distinct(name: str, topics: int, reports: int, different: int) -> None:
    """Raises ValueError where there are fewer different reports than topics."""
    if different < topics:
        raise ValueError(
            f"distiller {name}: {topics} topics asked of {reports} training reports, of which "
            f"{different} differ; set distiller.topics to {max(different, 1)} or less"
        )


def choose_topic_count(
    name: str,
    points: np.ndarray,
    clusterer: Clusterer,
    auto_range: tuple[int, int] | None,
    seed: int,
) -> TopicChoice:
    """Chooses the number of topics by silhouette and stability on training reports.

    Ten resamples, each of 80 % of the different reports with all their copies, are clustered for each number. Of each,
    its silhouette counts, and the adjusted Rand index between its topics and those of a fit to all reports; both over
    different reports, since copies flatter. The score is the mean of the two, and the smallest number is chosen whose
    mean score is within one standard error of the best. Resamples overlap, so this error is less than that of new data.

    Source:
        Silhouette: Rousseeuw 1987. Stability of subsamples: Ben-Hur, Elisseeff and Guyon 2002, Pacific Symposium on
        Biocomputing 7. Adjusted Rand index: Hubert and Arabie 1985. One standard error: Breiman et al. 1984,
        Classification and Regression Trees, section 3.4.3.

    Args:
        name: of the distiller, for messages.
        points: float [n, D], where the reports lie; silhouettes are measured here, by cosine. Reports that lie at the
            same place count as one.
        clusterer: see above; its seed differs between resamples.
        auto_range: the least and the largest number; None for 2 to 30, or as many as the reports allow.

    Raises:
        ValueError: there are too few different reports.
    """
    from sklearn.metrics import adjusted_rand_score

    _, first, of_report = np.unique(points, axis=0, return_index=True, return_inverse=True)
    of_report = of_report.reshape(-1)
    drawn = int(SHARE * len(first))
    counts = _counts(name, len(points), len(first), drawn - 1, auto_range)
    labels_of_all = clusterer(np.arange(len(points)), seed)
    whole = {count: labels_of_all(count) for count in counts}
    silhouettes, stabilities = np.zeros((2, len(counts), RESAMPLES))
    for resample in range(RESAMPLES):
        draw = np.random.default_rng([seed, resample])
        kept = np.sort(draw.choice(len(first), drawn, replace=False))
        places = np.flatnonzero(np.isin(of_report, kept))
        once = np.searchsorted(places, first[kept])  # where each different report stands among `places`
        labels_of = clusterer(places, seed + 1 + resample)
        for row, count in enumerate(counts):
            labels = labels_of(count)[once]
            silhouettes[row, resample] = silhouette(points[first[kept]], labels, seed) or 0.0
            stabilities[row, resample] = adjusted_rand_score(whole[count][first[kept]], labels)
    scores = (silhouettes + stabilities) / 2
    score, error = scores.mean(axis=1), scores.std(axis=1, ddof=1) / np.sqrt(RESAMPLES)
    best = int(score.argmax())
    chosen = counts[int(np.flatnonzero(score >= score[best] - error[best])[0])]
    log.info("distiller %s: %d topics, of %d to %d tried", name, chosen, counts[0], counts[-1])
    return TopicChoice(
        chosen, counts, *(values.tolist() for values in (silhouettes.mean(1), stabilities.mean(1), score, error))
    )


def _counts(name: str, reports: int, different: int, most: int, auto_range: tuple[int, int] | None) -> list[int]:
    """The numbers to try."""
    low, high = auto_range or RANGE
    if auto_range is None:
        high = min(high, most)
    if not low <= high <= most:
        fits = f"set distiller.auto_range to at most {most}" if most >= 2 else "set distiller.topics to a number"
        raise ValueError(
            f"distiller {name}: topics: auto tries {low} to {max(low, high)} topics, and of {reports} training reports "
            f"{different} differ, too few to compare so many; {fits}"
        )
    if high - low < MOST:
        return list(range(low, high + 1))
    return sorted({round(number) for number in np.geomspace(low, high, MOST)})


def choice_rows(choice: TopicChoice) -> list[tuple[str, str, str, str]]:
    """A row for each number of topics that was tried: the number, silhouette, stability, score and its error."""
    columns = zip(choice.counts, choice.silhouette, choice.stability, choice.score, choice.error)
    return [
        (
            f"{count}{' *' if count == choice.chosen else ''}",
            f"{near:.3f}",
            f"{again:.3f}",
            f"{score:.3f} ± {error:.3f}",
        )
        for count, near, again, score, error in columns
    ]
