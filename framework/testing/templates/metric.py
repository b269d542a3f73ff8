"""Length ratio: whether reports are as long as their references."""

from __future__ import annotations

from collections.abc import Sequence

from framework.exam import Pair
from framework.registry import register
from framework.registry.types import Fraction


@register("metric", "my_metric")
class MyMetric:
    """Words of the shorter of report and reference divided by words of the longer, mean over reports. 0 to 1.

    Args:
        floor: Minimum value of a report.
    """

    names = ("my_metric",)
    by_words = True
    higher_is_better = True

    def __init__(self, *, floor: Fraction = 0.0) -> None:
        self.floor = floor

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        ratios = [self._ratio(len(pair.prediction_words), len(pair.reference_words)) for pair in pairs]
        return {"my_metric": sum(ratios) / len(ratios)}

    def _ratio(self, written: int, expected: int) -> float:
        return max(self.floor, min(written, expected) / max(written, expected, 1))
