"""Bootstrap intervals of scores: patients are resampled with replacement, each with all their exams.

Shapes: E exams, P patients, N units that are resampled, R resamples, S statistics of a metric, K values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from framework.exam import Pair
from framework.recipe.schema import WEIGHTED_SUM
from framework.runtime.console import print0
from framework.scoring.scorer import Rows, Scorer, Seconds, add_weighted_sum

LEVEL = 0.95  # confidence of an interval
CHUNK = 1_000_000  # counts of resamples in memory at a time, about 30 MB
CALLS_S = 30.0  # longest total time of calling a metric on every resample

Values = Callable[[np.ndarray], dict[str, np.ndarray]]  # counts [R, E] -> a metric's values [R] by name


class ResampleError(ValueError):
    """A metric fails on a resample."""


def draws(units: int, *, seed: int, bootstrap_samples: int) -> Iterator[np.ndarray]:
    """Yields bootstrap resamples, some at a time: how often each resample contains each unit, float64 [R, N].

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 6.2.
    """
    random = np.random.default_rng(seed)
    batch = max(1, CHUNK // units)
    for start in range(0, bootstrap_samples, batch):
        drawn_RN = random.integers(0, units, (min(batch, bootstrap_samples - start), units))
        first_R1 = np.arange(len(drawn_RN))[:, None] * units
        counts = np.bincount((drawn_RN + first_R1).ravel(), minlength=drawn_RN.size)
        yield counts.reshape(drawn_RN.shape).astype(np.float64)


def percentile_interval(drawn_KR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high ends [K]: the 2.5th and the 97.5th percentile of the resampled values.

    Source:
        Efron and Tibshirani 1993, section 13.3.
    """
    outside = 100 * (1 - LEVEL) / 2
    return np.percentile(drawn_KR, outside, axis=-1), np.percentile(drawn_KR, 100 - outside, axis=-1)


def by_sums(metric: Any, pairs: Sequence[Pair]) -> Values:
    """Values on resamples, from the statistics of each exam."""
    sums_ES = metric.per_exam_stats(pairs)
    return lambda counts_RE: metric.compute(counts_RE @ sums_ES)


def by_calls(metric: Any, pairs: Sequence[Pair]) -> Values:
    """Values on resamples of a metric without `per_exam_stats`: it is called on each resample.

    The returned function raises ResampleError if the metric fails.
    """

    def values(counts_RE: np.ndarray) -> dict[str, np.ndarray]:
        rows = []
        for counts_E in counts_RE.astype(int):
            drawn = [
                # Copies get distinct ids, because a metric may key its pairs by id.
                replace(pair, exam_id=f"{pair.exam_id} ({time})") if time else pair
                for pair, times in zip(pairs, counts_E)
                for time in range(times)
            ]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they were printed when the run was scored
                try:
                    found = metric(drawn)
                    rows.append([float(found[name]) for name in metric.names])
                except Exception as error:  # whatever a plugin may raise
                    raise ResampleError(f"its metric fails on a resample: {error!r}") from error
        return dict(zip(metric.names, np.array(rows).T))

    return values


def intervals(
    scorer: Scorer,
    rows: Rows,
    patients: Mapping[str, str],
    known: Mapping[str, float],
    seconds: Seconds,
    *,
    seed: int,
    bootstrap_samples: int,
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Low and high ends of the 95 % interval of each score, and the reason for each score without one; by name.

    A metric with `per_exam_stats` costs little. Another metric is called on each resample if all calls take at most
    `CALLS_S`; otherwise its scores have no interval. With a single patient or 0 resamples there are no intervals.

    Args:
        patients: exam id -> patient.
        known: the scores of the rows. Scores that only resamples have get no interval.
        seconds: duration of each call of a metric, from `Scorer.timed_score`.
    """
    index: dict[str, int] = {}
    patient_E = np.array([index.setdefault(patients[exam_id], len(index)) for exam_id, _, _ in rows], dtype=int)
    if not bootstrap_samples or len(index) < 2:
        return {}, {}, {}
    reasons: list[tuple[Sequence[str], str, str]] = []  # names of a metric, suffix, why they have no interval
    drawn: dict[str, np.ndarray] = {}
    for metric, pairs, suffix in scorer.metric_inputs(rows):
        if hasattr(metric, "per_exam_stats"):
            values = _by_patient_sums(metric, pairs, patient_E)
        elif (total := seconds[id(metric), suffix] * bootstrap_samples) <= CALLS_S:
            values = _by_patient_calls(metric, pairs, patient_E)
        else:
            reasons.append((metric.names, suffix, f"{bootstrap_samples} calls of its metric would take {total:.0f} s"))
            continue
        try:
            parts = [
                values(counts_RP) for counts_RP in draws(len(index), seed=seed, bootstrap_samples=bootstrap_samples)
            ]
        except ResampleError as error:
            print0(f"warning: no interval of {', '.join(metric.names)}: {error}")
            reasons.append((metric.names, suffix, str(error)))
            continue
        drawn |= {f"{name}{suffix}": np.concatenate([part[name] for part in parts]) for name in parts[0]}
    add_weighted_sum(drawn, scorer.weights)
    finite = [name for name in known if name in drawn and np.isfinite(drawn[name]).all()]
    ends = {name: percentile_interval(drawn[name]) for name in finite}
    low, high = ({name: round(float(pair[end]), 6) for name, pair in ends.items()} for end in (0, 1))
    return low, high, {name: _reason(name, drawn, reasons) for name in known if name not in ends}


class PatientStatistics:
    """Statistics of metrics by patient, of several predictions for the same exams.

    Added right after the predictions are scored, they cost a metric with a model nothing: it remembers the last ones.

    Args:
        exam_ids: of every row, in order.
        patients: exam id -> patient.
    """

    def __init__(self, scorer: Scorer, exam_ids: Sequence[str], patients: Mapping[str, str]) -> None:
        self.scorer = scorer
        index: dict[str, int] = {}
        self.patient_E = np.array([index.setdefault(patients[exam_id], len(index)) for exam_id in exam_ids], dtype=int)
        self.patients = len(index)
        self.values: dict[tuple[tuple[str, ...], str], Values] = {}  # predictions, score -> its values on resamples

    def add(self, rows: Rows, names: Collection[str] | None = None) -> None:
        """Adds predictions for the scores of these names (None: all) whose metrics have `per_exam_stats`."""
        predictions = tuple(prediction for _, prediction, _ in rows)
        for metric, pairs, suffix in self.scorer.metric_inputs(rows):
            wanted = [f"{name}{suffix}" for name in metric.names if names is None or f"{name}{suffix}" in names]
            if wanted and hasattr(metric, "per_exam_stats"):
                values = _by_patient_sums(metric, pairs, self.patient_E)
                self.values |= {(predictions, name): values for name in wanted}

    def difference(
        self, name: str, rows: Sequence[str], others: Sequence[str], *, seed: int, bootstrap_samples: int
    ) -> tuple[float, float] | None:
        """Ends of the 95 % interval of (score of `rows`) - (score of `others`), on the same resamples of patients.

        Args:
            rows: predictions that were added, as are `others`.

        Returns:
            None without resamples, with a single patient, or if the score has no statistics by exam.
        """
        one, two = (self.values.get((tuple(predictions), name)) for predictions in (rows, others))
        if one is None or two is None or not bootstrap_samples or self.patients < 2:
            return None
        own = name.removesuffix("_char")
        drawn_R = np.concatenate(
            [
                one(counts_RP)[own] - two(counts_RP)[own]
                for counts_RP in draws(self.patients, seed=seed, bootstrap_samples=bootstrap_samples)
            ]
        )
        if not np.isfinite(drawn_R).all():
            return None
        low, high = percentile_interval(drawn_R)
        return round(float(low), 6), round(float(high), 6)


def _reason(name: str, drawn: Mapping[str, np.ndarray], reasons: Sequence[tuple[Sequence[str], str, str]]) -> str:
    """Why a score has no interval."""
    if name in drawn:
        return "not finite on some resamples"
    for names, suffix, reason in reversed(reasons):  # those with a suffix first
        if name.endswith(suffix) and name.removesuffix(suffix).split("/")[0] in names:
            return reason
    return "a score in its sum has none" if name == WEIGHTED_SUM else "its metric computes it over all exams only"


def _by_patient_sums(metric: Any, pairs: Sequence[Pair], patient_E: np.ndarray) -> Values:
    sums_ES = metric.per_exam_stats(pairs)
    sums_PS = np.zeros((patient_E.max() + 1, sums_ES.shape[1]))
    np.add.at(sums_PS, patient_E, sums_ES)
    return lambda counts_RP: metric.compute(counts_RP @ sums_PS)


def _by_patient_calls(metric: Any, pairs: Sequence[Pair], patient_E: np.ndarray) -> Values:
    values = by_calls(metric, pairs)
    return lambda counts_RP: values(counts_RP[:, patient_E])
