"""Descriptions and quality measures of topics, the same for every distiller so that they can be compared.

Reports of one hospital repeat each other word for word (one text can be a quarter of the data), and copies inflate
every measure of a clustering. So each measure is computed twice: over all reports, and over distinct reports.

Shapes: n reports, K topics, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from framework.text.lsa import count_words

SAMPLE = 2000  # points of a silhouette, whose time and memory are quadratic; distinct reports that are fitted again
REFITS = 3
Refit = Callable[[np.ndarray, int], np.ndarray]
# Words without content, left out of the words of a topic.
STOP_WORDS = frozenset("的了者大小一见可于及和与或约为其呈在有并处内示余均各个枚") | {
    "可见",
    *"a an and are as at be been but by for from has have in is it its no not of on or that the".split(),  # noqa: SIM905
    *"their there these this to was were which with".split(),  # noqa: SIM905
}


@dataclass(frozen=True)
class TopicDescription:
    """Description of a topic for people."""

    words: list[str]  # the most characteristic first
    size: int  # number of training reports
    example: str  # the training report with the largest weight; empty for an empty topic


def distinct_reports(texts: Sequence[str]) -> np.ndarray:
    """Index of the first occurrence of each distinct text, int64."""
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        first.setdefault(text, place)
    return np.fromiter(first.values(), dtype=np.int64, count=len(first))


def largest_first(labels: np.ndarray, count: int) -> np.ndarray:
    """The topics, the largest first, int64 [K]: `order[new] = old`. Ties keep their order."""
    return np.argsort(-np.bincount(labels, minlength=count), kind="stable")


def describe_topics(
    texts: Sequence[str], word_lists: Sequence[Sequence[str]], labels: np.ndarray, weights: np.ndarray, top: int = 8
) -> list[TopicDescription]:
    """Describes topics by their training reports.

    The score of a word for a topic is p log(p / q), its term of the Kullback-Leibler divergence, where p and q are the
    fractions of the topic's reports and of all reports with the word. Punctuation and `STOP_WORDS` are left out.

    Args:
        labels: int64 [n], the topic of each report.
        weights: float [n, K], the weight of each topic in each report.
    """
    found = {word for word in set(chain.from_iterable(word_lists)) if any(map(str.isalnum, word))}
    words = sorted(word for word in found if word.lower() not in STOP_WORDS)
    contains = count_words(word_lists, {word: row for row, word in enumerate(words)})
    contains.data[:] = 1
    overall = np.asarray(contains.mean(axis=0)).ravel()
    descriptions = []
    for topic in range(weights.shape[1]):
        members = np.flatnonzero(labels == topic)
        if len(members) == 0:
            descriptions.append(TopicDescription([], 0, ""))
            continue
        fraction = np.asarray(contains[members].mean(axis=0)).ravel()
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.where(fraction > 0, fraction * np.log(fraction / overall), 0)
        if weights.shape[1] == 1:
            score = fraction  # there is no other topic
        best = [int(row) for row in np.argsort(-score, kind="stable")[:top] if score[row] > 1e-9]
        example = texts[members[np.argmax(weights[members, topic])]]
        descriptions.append(TopicDescription([words[row] for row in best], len(members), example))
    return descriptions


def silhouettes_of(points: np.ndarray, seed: int) -> Callable[[np.ndarray], float | None]:
    """From labels [n] to the mean silhouette of points [n, D] (Rousseeuw 1987), cosine distance, from -1 to 1.

    Of at most `SAMPLE` points drawn by `seed`, whose distances are computed once. None if it is undefined: fewer than
    two topics, or each point in its own topic.
    """
    from sklearn.metrics import silhouette_score
    from sklearn.metrics.pairwise import cosine_distances

    known = np.flatnonzero(np.linalg.norm(points, axis=1) > 0)  # a report of unknown words has no direction
    if len(known) > SAMPLE:
        known = np.sort(np.random.default_rng(seed).choice(known, SAMPLE, replace=False))
    distances = cosine_distances(points[known]) if len(known) else np.zeros((0, 0))

    def silhouette_of(labels: np.ndarray) -> float | None:
        if not 2 <= len(np.unique(labels[known])) < len(known):
            return None
        return float(silhouette_score(distances, labels[known], metric="precomputed"))

    return silhouette_of


def stability(
    labels: np.ndarray, refit: Refit, seed: int, sample: np.ndarray, among: np.ndarray
) -> tuple[float, float]:
    """Mean adjusted Rand index between `labels` [n] and `REFITS` fits with other seeds (Hubert and Arabie 1985).

    1 is perfect agreement, 0 is chance.

    Args:
        sample: indices of the reports that are fitted again.
        among: indices in `sample` of the distinct reports.

    Returns:
        over all reports of the sample, and over its distinct reports.
    """
    from sklearn.metrics import adjusted_rand_score

    labels = labels[sample]
    others = [refit(sample, seed + step) for step in range(1, REFITS + 1)]
    over_all = [adjusted_rand_score(labels, other) for other in others]
    over_distinct = [adjusted_rand_score(labels[among], other[among]) for other in others]
    return float(np.mean(over_all)), float(np.mean(over_distinct))


def topic_quality(
    texts: Sequence[str], points: np.ndarray, labels: np.ndarray, refit: Refit, seed: int
) -> dict[str, float | None]:
    """The quality of topics on training reports, by name; see the functions above.

    Of more than `SAMPLE` distinct reports, `SAMPLE` drawn by the seed are fitted again, with all of their copies:
    `reports_refitted` tells how many that are.

    Args:
        points: embeddings of the reports, float [n, D].
        refit: (indices of reports, seed) -> labels of these reports by a fit on these only.
    """
    once = distinct_reports(texts)
    drawn = once
    if len(once) > SAMPLE:
        drawn = np.sort(np.random.default_rng(seed).choice(once, SAMPLE, replace=False))
    chosen = {texts[place] for place in drawn}
    sample = np.array([place for place, text in enumerate(texts) if text in chosen], dtype=np.int64)
    over_all, over_distinct = stability(labels, refit, seed, sample, np.searchsorted(sample, drawn))
    return {
        "silhouette": silhouettes_of(points, seed)(labels),
        "silhouette_different": silhouettes_of(points[once], seed)(labels[once]),
        "stability": over_all,
        "stability_different": over_distinct,
        "reports": float(len(texts)),
        "reports_different": float(len(once)),
        "reports_refitted": float(len(sample)),
    }
