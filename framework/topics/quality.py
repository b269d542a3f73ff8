"""What every distiller tells about its topics in the same way, so that distillers can be compared.

Reports of one hospital repeat each other word for word (one text can be a quarter of the data), and copies flatter
every measure of a clustering. So each measure comes twice: over all reports, and over different reports, each once.

Shapes: n reports, K topics, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from framework.text.lsa import count_words

SAMPLE = 2000  # a silhouette takes time and memory by the square of this
REFITS = 3


@dataclass(frozen=True)
class TopicDescription:
    """One topic, for people."""

    words: list[str]  # the most characteristic first
    size: int  # training reports
    example: str  # the training report that belongs to it most; empty for an empty topic


def distinct_reports(texts: Sequence[str]) -> np.ndarray:
    """Where each text stands for the first time, int64."""
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        first.setdefault(text, place)
    return np.fromiter(first.values(), dtype=np.int64, count=len(first))


def largest_first(labels: np.ndarray, count: int) -> np.ndarray:
    """The topics from the largest to the smallest, int64 [K]: `order[new] = old`. Ties keep their order."""
    return np.argsort(-np.bincount(labels, minlength=count), kind="stable")


def describe_topics(
    texts: Sequence[str], word_lists: Sequence[Sequence[str]], labels: np.ndarray, weights: np.ndarray, top: int = 8
) -> list[TopicDescription]:
    """Describes topics by their training reports.

    A word is characteristic of a topic by p log(p / q), where p and q are the shares of the topic's reports and of all
    reports that hold it: its part of the Kullback-Leibler divergence. Punctuation is left out.

    Args:
        labels: int64 [n], the topic of each report.
        weights: float [n, K], how much each report belongs to each topic.
    """
    words = sorted({word for report in word_lists for word in report if any(map(str.isalnum, word))})
    holds = count_words(word_lists, {word: row for row, word in enumerate(words)})
    holds.data[:] = 1
    overall = np.asarray(holds.mean(axis=0)).ravel()
    cards = []
    for topic in range(weights.shape[1]):
        members = np.flatnonzero(labels == topic)
        if len(members) == 0:
            cards.append(TopicDescription([], 0, ""))
            continue
        share = np.asarray(holds[members].mean(axis=0)).ravel()
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.where(share > 0, share * np.log(share / overall), 0)
        if weights.shape[1] == 1:
            score = share  # nothing to differ from
        best = [int(row) for row in np.argsort(-score, kind="stable")[:top] if score[row] > 1e-9]
        example = texts[members[np.argmax(weights[members, topic])]]
        cards.append(TopicDescription([words[row] for row in best], len(members), example))
    return cards


def silhouette(points: np.ndarray, labels: np.ndarray, seed: int) -> float | None:
    """Mean silhouette of points [n, D] (Rousseeuw 1987), cosine distance, of at most `SAMPLE` points drawn by `seed`.

    From -1 to 1, higher is better. None where it means nothing: fewer than two topics, or each point on its own.
    """
    from sklearn.metrics import silhouette_score

    known = np.flatnonzero(np.linalg.norm(points, axis=1) > 0)  # a report of unknown words lies nowhere
    if len(known) > SAMPLE:
        known = np.sort(np.random.default_rng(seed).choice(known, SAMPLE, replace=False))
    if not 2 <= len(np.unique(labels[known])) < len(known):
        return None
    return float(silhouette_score(points[known], labels[known], metric="cosine"))


def stability(
    labels: np.ndarray, refit: Callable[[int], np.ndarray], seed: int, among: np.ndarray
) -> tuple[float, float]:
    """Mean adjusted Rand index between `labels` [n] and `REFITS` fits with other seeds (Hubert and Arabie 1985).

    1 means the same topics each time, 0 no more agreement than chance.

    Args:
        refit: seed -> labels [n] of the same reports.
        among: the different reports, see `distinct_reports`.

    Returns:
        over all reports, over different reports.
    """
    from sklearn.metrics import adjusted_rand_score

    others = [refit(seed + step) for step in range(1, REFITS + 1)]
    everywhere = [adjusted_rand_score(labels, other) for other in others]
    once = [adjusted_rand_score(labels[among], other[among]) for other in others]
    return float(np.mean(everywhere)), float(np.mean(once))


def topic_quality(
    texts: Sequence[str], points: np.ndarray, labels: np.ndarray, refit: Callable[[int], np.ndarray], seed: int
) -> dict[str, float | None]:
    """The quality of topics on training reports, by name; see the functions above.

    Args:
        points: float [n, D], the reports in a report space.
    """
    once = distinct_reports(texts)
    everywhere, among = stability(labels, refit, seed, once)
    return {
        "silhouette": silhouette(points, labels, seed),
        "silhouette_different": silhouette(points[once], labels[once], seed),
        "stability": everywhere,
        "stability_different": among,
        "reports": float(len(texts)),
        "reports_different": float(len(once)),
    }
