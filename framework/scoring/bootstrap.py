"""How sure the scores of a split are: patients are drawn with replacement, and all exams of a patient come along.

Shapes: E exams, P patients, N of whatever is drawn, R resamples of them, S sums of a metric, K values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from framework.exam import Pair
from framework.recipe.schema import WEIGHTED_SUM
from framework.runtime.console import print0
from framework.scoring.scorer import Scorer, add_sum

LEVEL = 0.95  # of an interval
AT_ONCE = 1_000_000  # places of resamples that are held in memory together: some 30 MB
CALLS_S = 30.0  # that calling a metric on every resample may take

Values = Callable[[np.ndarray], dict[str, np.ndarray]]  # a metric's values [R] by name, of counts [R, E]


class ResampleError(ValueError):
    """A metric that gives no value on a resample."""


def draws(units: int, *, seed: int, bootstrap_samples: int) -> Iterator[np.ndarray]:
    """Resamples of `units`, each as many as there are, drawn with replacement: how often each unit is in each, float64
    [R, N], some resamples at a time.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 6.2.
    """
    random = np.random.default_rng(seed)
    batch = max(1, AT_ONCE // units)
    for begin in range(0, bootstrap_samples, batch):
        drawn_RN = random.integers(0, units, (min(batch, bootstrap_samples - begin), units))
        first_R1 = np.arange(len(drawn_RN))[:, None] * units
        counts = np.bincount((drawn_RN + first_R1).ravel(), minlength=drawn_RN.size)
        yield counts.reshape(drawn_RN.shape).astype(np.float64)


def percentile_interval(drawn_KR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high ends [K]: what 2.5 % of the resampled values lie below, and above.

    Source:
        Efron and Tibshirani 1993, section 13.3.
    """
    outside = 100 * (1 - LEVEL) / 2
    return np.percentile(drawn_KR, outside, axis=-1), np.percentile(drawn_KR, 100 - outside, axis=-1)


def by_sums(metric: Any, pairs: Sequence[Pair]) -> Values:
    """The values of resamples, from the sums of each exam."""
    sums_ES = metric.per_exam_stats(pairs)
    return lambda counts_RE: metric.compute(counts_RE @ sums_ES)


def by_calls(metric: Any, pairs: Sequence[Pair]) -> Values:
    """The values of resamples of a metric that offers no sums: it is called on each.

    What it gives raises ResampleError where the metric fails.
    """

    def values(counts_RE: np.ndarray) -> dict[str, np.ndarray]:
        rows = []
        for counts_E in counts_RE.astype(int):
            drawn = [
                # An id of its own, for a metric that files its pairs under their ids.
                replace(pair, exam_id=f"{pair.exam_id} ({time})") if time else pair
                for pair, times in zip(pairs, counts_E)
                for time in range(times)
            ]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what there is to warn of was said when the run was scored
                try:
                    found = metric(drawn)
                    rows.append([float(found[name]) for name in metric.names])
                except Exception as error:  # whatever a plugin may raise
                    raise ResampleError(f"its metric fails on a resample: {error!r}") from error
        return dict(zip(metric.names, np.array(rows).T))

    return values


def intervals(
    scorer: Scorer,
    rows: Sequence[tuple[str, str, str]],
    patients: Mapping[str, str],
    known: Mapping[str, float],
    took: Mapping[tuple[int, str], float],
    *,
    seed: int,
    bootstrap_samples: int,
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Low and high ends of the 95 % interval of each score, by its name, and why a score has none.

    A metric with sums of each exam costs little. Any other is called on each resample, if all calls take no longer than
    `CALLS_S`, and has no interval else. A single patient, or 0 resamples, give none at all.

    Args:
        rows: exam id, prediction, reference.
        patients: whose each exam is.
        known: the scores that the rows have; parts that they lack get no interval.
        took: how long the call of each metric took that gave them, see `Scorer.score`. [s]
    """
    place: dict[str, int] = {}
    patient_E = np.array([place.setdefault(patients[exam_id], len(place)) for exam_id, _, _ in rows], dtype=int)
    if not bootstrap_samples or len(place) < 2:
        return {}, {}, {}
    reasons: list[tuple[Sequence[str], str, str]] = []  # names, suffix, why they have none
    drawn: dict[str, np.ndarray] = {}
    for metric, pairs, suffix in scorer.cuts(rows):
        if hasattr(metric, "per_exam_stats"):
            way = _by_patient_sums(metric, pairs, patient_E)
        elif (seconds := took[id(metric), suffix] * bootstrap_samples) <= CALLS_S:
            way = _by_patient_calls(metric, pairs, patient_E)
        else:
            reasons.append(
                (metric.names, suffix, f"{bootstrap_samples} calls of its metric would take {seconds:.0f} s")
            )
            continue
        try:
            parts = [way(counts_RP) for counts_RP in draws(len(place), seed=seed, bootstrap_samples=bootstrap_samples)]
        except ResampleError as error:
            print0(f"warning: no interval of {', '.join(metric.names)}: {error}")
            reasons.append((metric.names, suffix, str(error)))
            continue
        drawn |= {f"{name}{suffix}": np.concatenate([part[name] for part in parts]) for name in parts[0]}
    add_sum(drawn, scorer.weights)
    finite = [name for name in known if name in drawn and np.isfinite(drawn[name]).all()]
    ends = {name: percentile_interval(drawn[name]) for name in finite}
    low, high = ({name: round(float(pair[end]), 6) for name, pair in ends.items()} for end in (0, 1))
    return low, high, {name: _why(name, drawn, reasons) for name in known if name not in ends}


def _why(name: str, drawn: Mapping[str, np.ndarray], reasons: Sequence[tuple[Sequence[str], str, str]]) -> str:
    """Why a score has no interval."""
    if name in drawn:
        return "on some resamples it is not finite"
    for names, suffix, reason in reversed(reasons):  # those with a suffix first
        if name.endswith(suffix) and name.removesuffix(suffix).split("/")[0] in names:
            return reason
    return "a score in its sum has none" if name == WEIGHTED_SUM else "its metric gives it of all exams alone"


def _by_patient_sums(metric: Any, pairs: Sequence[Pair], patient_E: np.ndarray) -> Values:
    sums_ES = metric.per_exam_stats(pairs)
    sums_PS = np.zeros((patient_E.max() + 1, sums_ES.shape[1]))
    np.add.at(sums_PS, patient_E, sums_ES)
    return lambda counts_RP: metric.compute(counts_RP @ sums_PS)


def _by_patient_calls(metric: Any, pairs: Sequence[Pair], patient_E: np.ndarray) -> Values:
    values = by_calls(metric, pairs)
    return lambda counts_RP: values(counts_RP[:, patient_E])
