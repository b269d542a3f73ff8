"""What the category of a report, such as BI-RADS, says of a truth that no reference states."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.registry.source import unknown_name
from framework.runtime.errors import UserError
from framework.scoring.counts import safe_divide
from framework.scoring.pairs import require_pairs
from framework.text.findings.reader import categories, read


@register("metric", "category")
class Category:
    """AUC of an attribute of the exam by the report's category, and kappa of the category with the reference's.

    `category_auc` is the probability that a positive exam has a higher category than a negative one; equal categories
    count half. It reads no reference: `attribute` is one that the data set knows, such as the result of a biopsy. Exams
    without it do not count. `category_kappa` is Cohen's kappa without weights; exams whose reference states no category
    do not count. Of several categories in one text the highest counts, and a text without one is below all.

    One report for all exams has an AUC of 0.5 and a kappa of 0. These are also the values where nothing is compared.

    Source:
        Hanley and McNeil 1982, Radiology 143 (the AUC as a probability); Cohen 1960, Educational and Psychological
        Measurement 20.

    Args:
        category: Attribute of the lexicon with ordered values: birads or tirads.
        attribute: Attribute of the exams.
        positive: Its value for a positive exam; all other values are negative.
    """

    names = ("category_auc", "category_kappa")
    by_words = False
    higher_is_better = True

    def __init__(self, *, category: str = "birads", attribute: str, positive: str) -> None:
        known = categories()
        if category not in known:
            raise UserError.of([unknown_name("category", category, known, place="evaluate.metrics: category.category")])
        self.category, self.attribute, self.positive = category, attribute, positive
        self.rank = {value: number for number, value in enumerate(known[category], 1)}

    @property
    def exam_attributes(self) -> tuple[str, ...]:
        """Attributes of the exams that it reads."""
        return (self.attribute,)

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split`."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        negative, positive = self._by_truth(sums_S).sum(-1)
        if not negative or not positive:
            warnings.warn(
                f"category_auc means nothing here: of {len(pairs)} exams {positive:.0f} have the {self.attribute} "
                f"'{self.positive}' and {negative:.0f} another one",
                stacklevel=2,
            )
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report: counts by truth and category, then by category of the reference and of the report."""
        require_pairs("category", pairs)
        ranks = len(self.rank) + 1
        truth_E2C, confusion_ECC = np.zeros((len(pairs), 2, ranks)), np.zeros((len(pairs), ranks, ranks))
        for row, pair in enumerate(pairs):
            predicted, reference = self._rank(pair.prediction), self._rank(pair.reference)
            if (truth := pair.attributes.get(self.attribute)) is not None:
                truth_E2C[row, int(truth == self.positive), predicted] = 1
            if reference:
                confusion_ECC[row, reference, predicted] = 1
        return np.concatenate([truth_E2C.reshape(len(pairs), -1), confusion_ECC.reshape(len(pairs), -1)], axis=1)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Both values from sums over exams, [..., S]."""
        negative, positive = np.moveaxis(self._by_truth(sums), -2, 0)
        below = np.cumsum(negative, axis=-1) - negative / 2
        compared = negative.sum(-1) * positive.sum(-1)
        auc = np.where(compared > 0, safe_divide((positive * below).sum(-1), compared), 0.5)
        ranks = len(self.rank) + 1
        confusion = sums[..., 2 * ranks :].reshape(*sums.shape[:-1], ranks, ranks)
        total = confusion.sum((-2, -1))
        observed = safe_divide(np.trace(confusion, axis1=-2, axis2=-1), total)
        chance = safe_divide((confusion.sum(-1) * confusion.sum(-2)).sum(-1), total**2)
        return {"category_auc": auc, "category_kappa": safe_divide(observed - chance, 1 - chance)}

    def best_constants(
        self, texts: Sequence[str], words: Sequence[tuple[str, ...]], pairs: Sequence[Pair]
    ) -> dict[str, int]:
        """The first text, since all constants score the same."""
        return dict.fromkeys(self.names, 0)

    def _by_truth(self, sums: np.ndarray) -> np.ndarray:
        """Counts by truth, negative first, and category."""
        ranks = len(self.rank) + 1
        return sums[..., : 2 * ranks].reshape(*sums.shape[:-1], 2, ranks)

    def _rank(self, text: str) -> int:
        """The place of the highest category of a text, from 1; 0 if it states none."""
        return max((self.rank[value] for attribute, value in read(text) if attribute == self.category), default=0)
