"""Findings F1: whether a generated report states what its reference states, whatever the wording."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

from framework.exam import Pair
from framework.registry import register
from plugins.metric.findings_f1.reader import Finding, read


def _f1(both: int, told: int, true: int) -> float:
    return 2 * both / (told + true) if told + true else 0.0


@register("metric", "findings_f1")
class FindingsF1:
    """Agreement on what is stated: lesions and their side, echo, margin, calcification, categories and so on.

    A lexicon reads (attribute, value) pairs from both texts, in English or Chinese. F1, precision and recall are over
    all pairs of the split together (micro); `findings_f1/<attribute>` is F1 of one attribute, for those which the
    references state. 0 to 1. Findings of several lesions of one report are one set: who has which is not scored.

    Source:
        Sonoscribe.
    """

    names = ("findings_f1", "findings_precision", "findings_recall")
    by_words = False
    higher_is_better = True

    def read(self, text: str) -> set[Finding]:
        """What a report states, such as ("margin", "circumscribed")."""
        return set(read(text))

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `ValueError` for no pairs."""
        if not pairs:
            raise ValueError("findings F1 of no reports: the split is empty")
        both: Counter[str] = Counter()
        told: Counter[str] = Counter()
        true: Counter[str] = Counter()
        unread = 0
        for pair in pairs:
            predicted, expected = read(pair.prediction), read(pair.reference)
            both.update(attribute for attribute, _ in predicted & expected)
            told.update(attribute for attribute, _ in predicted)
            true.update(attribute for attribute, _ in expected)
            unread += not expected
        _warn(pairs, unread, told.total())
        scores = {
            "findings_f1": _f1(both.total(), told.total(), true.total()),
            "findings_precision": both.total() / told.total() if told else 0.0,
            "findings_recall": both.total() / true.total() if true else 0.0,
        }
        return scores | {f"findings_f1/{name}": _f1(both[name], told[name], true[name]) for name in sorted(true)}


def _warn(pairs: Sequence[Pair], unread: int, told: int) -> None:
    reports = len(pairs)
    empty = sum(not pair.prediction.strip() for pair in pairs)
    if empty:
        warnings.warn(f"findings F1: {empty} of {reports} predictions are empty and state nothing", stacklevel=3)
    if unread == reports:
        warnings.warn(
            f"findings F1 says nothing here: the lexicon reads no finding in any of {reports} references. It knows "
            "English and Chinese ultrasound of breast, thyroid and liver (plugins/metric/findings_f1/lexicon.yaml)",
            stacklevel=3,
        )
    elif unread * 10 > reports:
        warnings.warn(f"findings F1: the lexicon reads no finding in {unread} of {reports} references", stacklevel=3)
    if not told and unread < reports and empty < reports:
        warnings.warn(
            f"findings F1 is 0: the lexicon reads no finding in any of {reports} predictions. Early in training this "
            "is normal; else compare the two texts' language",
            stacklevel=3,
        )
