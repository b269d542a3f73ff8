"""Floors and ceilings: what reports score that were written without the model, so that a score means something.

In this field one fixed report can reach BLEU-4 0.5, and half of the test reports may stand word for word in training.
Nothing here is fitted on the test split; the two oracles and the rewording look at its references by definition.

Shapes: N training exams, M exams that are scored, P pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from framework.data.loading import ExamSet
from framework.exam import Exam
from framework.scoring.scorer import Scorer

SHORTLIST = 60  # reports that are tried as the fixed one: those most like the others, of which one is the best
JUDGES = 300  # reports that a shortlist is tried on at most
GRID = 16  # pixels a side of the small picture that nearest_image compares

Rows = list[tuple[str, str, str]]


def baseline_rows(
    exams: ExamSet, train: ExamSet, val: ExamSet, scorer: Scorer, monitor: str, seed: int
) -> dict[str, Rows]:
    """Rows (exam id, prediction, reference) by the name of the floor or ceiling.

    Without the image: `fixed_report`, the training report that scores best on validation, and `random_report`.
    Looking a little: `nearest_image`, the training report of the nearest image by a small picture and a histogram.
    Knowing the truth: `topic_oracle`, the best fixed report of the exam's topic; `retrieval_oracle`, the training
    report nearest to the reference; `rewording`, the truth in other words, where the source can write it.
    """
    training = [exam.report for exam in train.exams]
    references = [exam.report for exam in exams.exams]
    vectors = TfidfVectorizer(analyzer=scorer.tokenizer.segment)
    train_NW = vectors.fit_transform(training)
    random = np.random.default_rng([seed, len(exams)])
    predictions = {
        "fixed_report": [best_report(training, [exam.report for exam in val.exams], scorer, monitor)] * len(exams),
        "random_report": [training[i] for i in random.integers(len(training), size=len(exams))],
        "nearest_image": [training[i] for i in nearest_images(exams, train)],
    }
    if exams.topics is not None and train.topics is not None:
        by_topic = {}
        for topic in np.unique(train.topics):
            own = [report for report, label in zip(training, train.topics) if label == topic]
            by_topic[int(topic)] = best_report(own, own, scorer, monitor)
        fallback = predictions["fixed_report"][0]
        predictions["topic_oracle"] = [by_topic.get(int(topic), fallback) for topic in exams.topics]
    nearest_M = np.asarray((vectors.transform(references) @ train_NW.T).argmax(axis=1)).ravel()
    predictions["retrieval_oracle"] = [training[i] for i in nearest_M]
    if all(exam.rewording is not None for exam in exams.exams):
        predictions["rewording"] = [str(exam.rewording) for exam in exams.exams]
    return {name: rows_of(exams.exams, texts) for name, texts in predictions.items()}


def rows_of(exams: Sequence[Exam], predictions: Sequence[str]) -> Rows:
    return [(exam.id, prediction, exam.report) for exam, prediction in zip(exams, predictions, strict=True)]


def unseen_rows(rows: Rows, train: ExamSet) -> Rows:
    """The rows whose reference never occurs, word for word, among the training reports."""
    known = {exam.report for exam in train.exams}
    return [row for row in rows if row[2] not in known]


def best_report(candidates: Sequence[str], judges: Sequence[str], scorer: Scorer, monitor: str) -> str:
    """The candidate that scores best when it is given for every judge.

    Trying all would take minutes. The candidates that share most words with the judges, and the most frequent ones,
    are tried in full.
    """
    distinct = sorted(set(candidates))
    judges = [judges[i] for i in np.linspace(0, len(judges) - 1, min(JUDGES, len(judges)), dtype=int)]
    if len(distinct) > SHORTLIST:
        vectors = TfidfVectorizer(analyzer=scorer.tokenizer.segment, sublinear_tf=True)
        own = vectors.fit_transform(distinct)
        centre = np.asarray(vectors.transform(judges).mean(axis=0)).ravel()
        central = np.argsort(-(own @ centre), kind="stable")[: SHORTLIST // 2]
        frequent = [report for report, _ in Counter(candidates).most_common(SHORTLIST // 2)]
        distinct = sorted({distinct[i] for i in central} | set(frequent))
    higher = scorer.higher_is_better(monitor)
    values = [scorer.one(monitor, [("", candidate, judge) for judge in judges]) for candidate in distinct]
    return distinct[int(np.argmax(values) if higher else np.argmin(values))]


def nearest_images(exams: ExamSet, train: ExamSet) -> np.ndarray:
    """Numbers [M] of the training exams with the nearest simple image features."""
    train_NP, exams_MP = _simple_features(train), _simple_features(exams)
    mean, spread = train_NP.mean(0), train_NP.std(0) + 1e-6
    search = NearestNeighbors(n_neighbors=1).fit((train_NP - mean) / spread)
    return search.kneighbors((exams_MP - mean) / spread, return_distance=False).ravel()


def _simple_features(exams: ExamSet) -> np.ndarray:
    """A small picture and a histogram of grey values of each exam, the mean over its views. [exams, P]."""
    rows = []
    for exam in exams.exams:
        grey_VHW = exams.cache.images(exam.id).mean(axis=1)
        cell = max(1, grey_VHW.shape[-1] // GRID)
        side = grey_VHW.shape[-1] // cell
        trimmed = grey_VHW[:, : side * cell, : side * cell]
        small = trimmed.reshape(-1, side, cell, side, cell).mean(axis=(0, 2, 4)).ravel()
        histogram = np.histogram(grey_VHW, bins=32, range=(0, 256), density=True)[0]
        rows.append(np.concatenate([small, histogram * 255 * 8]))
    return np.stack(rows)
