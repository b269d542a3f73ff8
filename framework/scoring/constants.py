"""The constant report that scores best: one training report as the prediction of every exam.

The strongest constant differs by score, so each score has its own. A model that writes one report for every exam is at
most as good as these.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.exam import Pair
from framework.recipe.schema import WEIGHTED_SUM
from framework.scoring.scorer import Scorer

SHORTLIST = 60  # candidates for a score whose metric cannot compare all: half the most similar, half the most frequent
MAX_REFERENCES = 300  # that each of these is scored against
SECONDS = 20.0  # for all candidates of one metric


@dataclass(frozen=True)
class Constant:
    """The best constant report of a score.

    Attributes:
        tried: how many of the distinct training reports were compared: all, unless the metric is slow.
    """

    report: str
    tried: int


def best_constants(candidates: Sequence[str], references: Sequence[str], scorer: Scorer) -> dict[str, Constant]:
    """The candidate that scores best as the prediction of every reference, for each score of the scorer.

    A metric with `best_constants` compares all distinct candidates. Another metric is called on a shortlist: the
    winners of the others, the most frequent candidates, and those most similar to the references by TF-IDF.
    """
    distinct = sorted(set(candidates))
    found: dict[str, Constant] = {}
    others: list[tuple[Any, str, Any]] = []
    for segment, suffix, metrics in scorer.segmentations():
        words = [tuple(segment(text)) for text in distinct]
        pairs = [Pair(str(n), "", text, (), tuple(segment(text))) for n, text in enumerate(references)]
        for metric in metrics:
            if not hasattr(metric, "best_constants"):
                others.append((metric, suffix, segment))
                continue
            for name, index in metric.best_constants(distinct, words, pairs).items():
                found[f"{name}{suffix}"] = Constant(distinct[index], len(distinct))
    if others or scorer.weights:
        winners = [constant.report for constant in found.values()]
        shortlist = list(dict.fromkeys([*winners, *_shortlist(candidates, distinct, references, scorer)]))
        kept = np.linspace(0, len(references) - 1, min(MAX_REFERENCES, len(references)), dtype=int)
        some = [references[index] for index in kept]
        for metric, suffix, segment in others:
            found |= _by_calls(metric, suffix, segment, shortlist, some)
        if scorer.weights:
            values = [
                scorer.score_one(WEIGHTED_SUM, [("", text, reference) for reference in some]) for text in shortlist
            ]
            found[WEIGHTED_SUM] = Constant(shortlist[_argmax(values)], len(shortlist))
    return found


def _shortlist(candidates: Sequence[str], distinct: list[str], references: Sequence[str], scorer: Scorer) -> list[str]:
    if len(distinct) <= SHORTLIST:
        return distinct
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    vectors = TfidfVectorizer(analyzer=scorer.tokenizer.segment, sublinear_tf=True)
    distinct_NW = vectors.fit_transform(distinct)
    centre_W = np.asarray(vectors.transform(references).mean(axis=0)).ravel()
    central = np.argsort(-(distinct_NW @ centre_W), kind="stable")[: SHORTLIST // 2]
    return [report for report, _ in Counter(candidates).most_common(SHORTLIST // 2)] + [distinct[i] for i in central]


def _by_calls(
    metric: Any, suffix: str, segment: Any, shortlist: list[str], references: list[str]
) -> dict[str, Constant]:
    """The best of the shortlist by calls of the metric, as many as its time allows."""
    cut = [tuple(segment(text)) for text in references]
    rows: list[dict[str, float]] = []
    start = time.monotonic()
    for text in shortlist:
        words = tuple(segment(text))
        pairs = [Pair(str(n), text, reference, words, cut[n]) for n, reference in enumerate(references)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of reports that no model has generated
            rows.append(metric(pairs))
        if time.monotonic() - start > SECONDS:
            break
    sign = 1 if metric.higher_is_better else -1
    return {
        f"{name}{suffix}": Constant(shortlist[_argmax([sign * row[name] for row in rows])], len(rows))
        for name in metric.names
        if all(name in row for row in rows)
    }


def _argmax(values: Sequence[float]) -> int:
    """The index of the largest value, which NaN never is."""
    return int(np.argmax(np.nan_to_num(values, nan=-np.inf, posinf=np.inf, neginf=-np.inf)))
