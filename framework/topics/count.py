"""The number of topics: given in the recipe, or chosen on the training reports.

Shapes: n reports, K topics, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from framework.runtime.errors import UserError
from framework.topics.quality import SAMPLE, silhouettes_of

log = logging.getLogger(__name__)
AUTO = "auto"
RANGE = (2, 30)  # numbers of topics without auto_range
MAX_TRIED = 15  # numbers that are tried; in a wider range they are spaced geometrically
RESAMPLES = 10
FRACTION = 0.8  # of the distinct reports in a resample
NEARLY = 0.7  # of the stability of the best score: what a finer solution keeps at least

# Clusters some training reports: (their indices, int64 [m], and a seed) -> (K -> labels, int64 [m]). In two steps,
# since most of the work can be the same for every K.
Clusterer = Callable[[np.ndarray, int], Callable[[int], np.ndarray]]


@dataclass(frozen=True)
class TopicChoice:
    """The search for the number of topics: an item in each list for each number that was tried."""

    chosen: int
    counts: list[int]
    silhouette: list[float]
    stability: list[float]
    score: list[float]  # the mean of both
    error: list[float]  # the standard error of the score
    coarse: int | None = None  # the number with the best score, if a finer solution was preferred to it
    sampled: int | None = None  # distinct reports that were drawn for the search, if it did not use all


def check_auto_range(name: str, topics: int | str, auto_range: tuple[int, int] | None) -> None:
    """Checks the keys `topics` and `auto_range` of a distiller.

    Raises:
        UserError: the range is empty, starts below 2, or is ignored.
    """
    if auto_range is None:
        return
    if topics != AUTO:
        raise UserError(
            "ignored-setting",
            f"auto_range {list(auto_range)} has no effect, since topics is {topics}",
            place=f"distiller {name}",
            hint="Remove auto_range, or set topics: auto.",
        )
    low, high = auto_range
    if not 2 <= low <= high:
        raise UserError(
            "out-of-range",
            f"auto_range is {list(auto_range)}",
            place=f"distiller {name}",
            expected="[low, high] with 2 <= low <= high",
        )


def require_distinct_reports(name: str, topics: int | str, word_lists: Sequence[Sequence[str]]) -> None:
    """Raises UserError if `topics` is a number and fewer reports differ in their words."""
    if topics != AUTO:
        different: set[tuple[str, ...]] = set()
        for words in word_lists:
            different.add(tuple(sorted(words)))
            if len(different) == int(topics):  # usually among the first few dozen reports
                return
        require_distinct(name, int(topics), len(word_lists), len(different))


def require_distinct(name: str, topics: int, reports: int, different: int) -> None:
    """Raises UserError if there are fewer distinct reports than topics."""
    if different < topics:
        raise UserError(
            "too-few-reports",
            f"{topics} topics of {reports} training reports, of which {different} are distinct",
            place=f"distiller {name}",
            hint=f"Set distiller.topics to {max(different, 1)} or less.",
        )


def choose_topic_count(
    name: str,
    points: np.ndarray,
    clusterer: Clusterer,
    auto_range: tuple[int, int] | None,
    seed: int,
) -> TopicChoice:
    """Chooses the number of topics by silhouette and stability on training reports.

    For each number, ten resamples are clustered, each of 80 % of the distinct reports with all their copies. The score
    of a resample is the mean of its silhouette and of the adjusted Rand index between its topics and those of all
    reports; both over distinct reports, since copies inflate them. The smallest number whose mean score is within one
    standard error of the best is the coarse choice. Resamples overlap, so this error is smaller than that of new data.

    Of more than `SAMPLE` distinct reports, `SAMPLE` drawn by the seed are searched, with all of their copies.

    Two topics, with a lesion and without, score best on most reports and teach nothing else. So a larger number is
    chosen if the score has another peak there: the highest peak, above the lowest score between both by more than their
    standard errors, whose stability is at least 70 % of that of the coarse choice.

    Source:
        Silhouette: Rousseeuw 1987. Stability of subsamples: Ben-Hur, Elisseeff and Guyon 2002, Pacific Symposium on
        Biocomputing 7. Adjusted Rand index: Hubert and Arabie 1985. One standard error: Breiman et al. 1984,
        Classification and Regression Trees, section 3.4.3.

    Args:
        name: of the distiller, for messages.
        points: embeddings of the reports, float [n, D], for silhouettes by cosine. Reports with equal embeddings count
            as one.
        clusterer: see above; its seed differs between resamples.
        auto_range: the smallest and the largest number; None is 2 to 30, or to what the reports allow.

    Raises:
        UserError: there are too few distinct reports.
    """
    from sklearn.metrics import adjusted_rand_score

    _, first, of_report = np.unique(points, axis=0, return_index=True, return_inverse=True)
    of_report = of_report.reshape(-1)
    different, searched = len(first), np.arange(len(points))
    sampled = SAMPLE if len(first) > SAMPLE else None
    if sampled:
        chosen = np.sort(np.random.default_rng([seed, len(first)]).choice(len(first), sampled, replace=False))
        searched = np.flatnonzero(np.isin(of_report, chosen))
        first, of_report = np.searchsorted(searched, first[chosen]), np.searchsorted(chosen, of_report[searched])
    drawn = int(FRACTION * len(first))
    counts = _counts(name, len(points), different, drawn - 1, auto_range)
    labels_of_all = clusterer(searched, seed)
    full = {count: labels_of_all(count) for count in counts}
    silhouettes, stabilities = np.zeros((2, len(counts), RESAMPLES))
    for resample in range(RESAMPLES):
        draw = np.random.default_rng([seed, resample])
        kept = np.sort(draw.choice(len(first), drawn, replace=False))
        places = np.flatnonzero(np.isin(of_report, kept))
        once = np.searchsorted(places, first[kept])  # index of each distinct report among `places`
        labels_of = clusterer(searched[places], seed + 1 + resample)
        silhouette_of = silhouettes_of(points[searched[first[kept]]], seed)
        for row, count in enumerate(counts):
            labels = labels_of(count)[once]
            silhouettes[row, resample] = silhouette_of(labels) or 0.0
            stabilities[row, resample] = adjusted_rand_score(full[count][first[kept]], labels)
    scores = (silhouettes + stabilities) / 2
    score, error = scores.mean(axis=1), scores.std(axis=1, ddof=1) / np.sqrt(RESAMPLES)
    best = int(score.argmax())
    coarse = int(np.flatnonzero(score >= score[best] - error[best])[0])
    row = _finer(coarse, score, error, stabilities.mean(1))
    choice = TopicChoice(
        counts[row],
        counts,
        silhouettes.mean(axis=1).tolist(),
        stabilities.mean(axis=1).tolist(),
        score.tolist(),
        error.tolist(),
        coarse=None if row == coarse else counts[coarse],
        sampled=sampled,
    )
    on = f" on {sampled} of {different} distinct reports" if sampled else ""
    log.info("distiller %s: %d topics, of %d to %d tried%s", name, choice.chosen, counts[0], counts[-1], on)
    if trade := trade_of(choice):
        log.info("distiller %s: %s", name, trade)
    return choice


def _finer(coarse: int, score: np.ndarray, error: np.ndarray, stability: np.ndarray) -> int:
    """The row of the highest later peak of the score that is nearly as stable as row `coarse`, or `coarse`."""
    peaks = [
        row
        for row in range(coarse + 2, len(score) - 1)
        if score[row] >= max(score[row - 1], score[row + 1])
        and score[row] - error[row] > (score + error)[coarse:row].min()
        and stability[row] >= NEARLY * stability[coarse]
    ]
    return max(peaks, key=lambda row: score[row], default=coarse)


def trade_of(choice: TopicChoice) -> str:
    """What a finer solution costs, in a sentence; empty if the best score was chosen."""
    if choice.coarse is None:
        return ""
    fine, coarse = choice.counts.index(choice.chosen), choice.counts.index(choice.coarse)
    return (
        f"{choice.chosen} topics, although {choice.coarse} score best, since more topics teach more: stability "
        f"{choice.stability[fine]:.2f} against {choice.stability[coarse]:.2f}, silhouette "
        f"{choice.silhouette[fine]:.2f} against {choice.silhouette[coarse]:.2f}"
    )


def _counts(name: str, reports: int, different: int, most: int, auto_range: tuple[int, int] | None) -> list[int]:
    """The numbers to try."""
    low, high = auto_range or RANGE
    if auto_range is None:
        high = min(high, most)
    if not low <= high <= most:
        hint = f"Set distiller.auto_range to at most {most}." if most >= 2 else "Set distiller.topics to a number."
        raise UserError(
            "too-few-reports",
            f"topics: auto tries {low} to {max(low, high)} topics, and {different} of {reports} training reports are "
            "distinct",
            place=f"distiller {name}",
            hint=hint,
        )
    if high - low < MAX_TRIED:
        return list(range(low, high + 1))
    return sorted({round(number) for number in np.geomspace(low, high, MAX_TRIED)})


def choice_rows(choice: TopicChoice) -> list[tuple[str, str, str, str]]:
    """A row for each number of topics that was tried: the number, silhouette, stability, score with standard error."""
    columns = zip(choice.counts, choice.silhouette, choice.stability, choice.score, choice.error)
    return [
        (
            f"{count}{' *' if count == choice.chosen else ''}",
            f"{silhouette:.3f}",
            f"{stability:.3f}",
            f"{score:.3f} ± {error:.3f}",
        )
        for count, silhouette, stability, score, error in columns
    ]
