"""Agreement of report and reference on the value of each attribute, as between two readers."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.registry.source import unknown_name
from framework.runtime.errors import UserError
from framework.scoring.counts import safe_divide
from framework.scoring.pairs import require_pairs
from framework.text.findings.reader import attributes as known_attributes
from framework.text.findings.reader import read

PART = "agreement/"  # and an attribute


@register("metric", "agreement")
class Agreement:
    """Share of exams whose report states the reference's value of an attribute, mean over attributes. 0 to 1.

    The lexicon of `findings_f1` reads both texts. An exam counts for an attribute if its reference states one value; a
    report without a value, or with several, disagrees. `agreement/<attribute>` is the share for one attribute.
    Attributes that no reference states do not count.

    Source:
        Sonoscribe.

    Args:
        attributes: Attributes of the lexicon, such as [shape, margin].
    """

    names = ("agreement",)
    by_words = False
    higher_is_better = True

    def __init__(self, *, attributes: list[str]) -> None:
        place = "evaluate.metrics: agreement.attributes"
        if not attributes:
            raise UserError("missing-key", "the list is empty", place=place, expected="attributes of the lexicon")
        known = known_attributes()
        if problems := [
            unknown_name("attribute", name, known, place=place) for name in attributes if name not in known
        ]:
            raise UserError.of(problems)
        self.attributes = tuple(dict.fromkeys(attributes))

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split`."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        stated_A = sums_S.reshape(2, -1)[1]
        if not stated_A.any():
            warnings.warn(
                f"agreement means nothing here: no reference states {', '.join(self.attributes)}", stacklevel=2
            )
        unstated = {f"{PART}{name}" for name, stated in zip(self.attributes, stated_A) if not stated}
        return {name: float(value) for name, value in self.compute(sums_S).items() if name not in unstated}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report, for each attribute: 1 if both texts state the same value; then 1 if the reference states one."""
        require_pairs("agreement", pairs)
        rows = []
        for pair in pairs:
            predicted, reference = self._values(pair.prediction), self._values(pair.reference)
            rows.append(
                [value is not None and value == other for value, other in zip(reference, predicted)]
                + [value is not None for value in reference]
            )
        return np.array(rows, dtype=np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The values from sums over exams, [..., twice the attributes]."""
        same, stated = np.moveaxis(sums.reshape(*sums.shape[:-1], 2, -1), -2, 0)
        shares = safe_divide(same, stated)
        mean = safe_divide(shares.sum(-1), (stated > 0).sum(-1).astype(np.float64))
        return {"agreement": mean, **{f"{PART}{name}": shares[..., n] for n, name in enumerate(self.attributes)}}

    def best_constants(
        self, texts: Sequence[str], words: Sequence[tuple[str, ...]], pairs: Sequence[Pair]
    ) -> dict[str, int]:
        """Index of the text that scores best as the prediction of every reference."""
        references = zip(*(self._values(pair.reference) for pair in pairs))
        times = [Counter(value for value in values if value is not None) for values in references]
        shares = [
            sum(counts[value] / counts.total() for counts, value in zip(times, self._values(text)) if counts)
            for text in texts
        ]
        return {"agreement": int(np.argmax(shares))}

    def _values(self, text: str) -> list[str | None]:
        """The value of each attribute; None if the text states none or several."""
        found: dict[str, set[str]] = {}
        for attribute, value in read(text):
            found.setdefault(attribute, set()).add(value)
        return [next(iter(own)) if len(own := found.get(name, set())) == 1 else None for name in self.attributes]
