"""RadEval: model-based scores of radiology reports such as RadGraph F1, by the package radeval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.runtime.errors import UserError, first_line
from framework.scoring.dependencies import (
    LastResult,
    finite_values,
    import_package,
    indices_with_words,
    require_english,
)

# Values per report; the first is the score.
VALUES = {
    "radgraph": ("radgraph_partial", "radgraph_simple", "radgraph_complete"),
    "radeval_bertscore": ("radeval_bertscore",),
}


@register("metric", "radeval")
class RadEval:
    """A score of the package radeval, mean over reports: RadGraph F1, or BERTScore with a radiology model.

    `radeval` is the chosen score; all values of the package are reported too, as `radeval/radgraph_complete`. Only
    scores are offered that are better when higher, send no report to a service, run no code of a downloaded model, and
    are not limited to chest findings. The package downloads its own models from the model hub; without network they
    must be in the hub's cache (HF_HOME). It also reads weight files other than safetensors, which this project
    otherwise refuses. Reports without a letter score 0.

    Written for radeval 2.2.1 and tested with a stand-in of the same interface, not with the package's models.

    Args:
        score: `radgraph`, F1 of entities, their attributes and relations, or `radeval_bertscore`.

    Source:
        Xu et al. 2025, EMNLP System Demonstrations, "RadEval"; Jain et al. 2021, arXiv 2106.14463 (RadGraph).

    Raises:
        UserError: the package or a model is missing, or the reports are not in English.
    """

    names = ("radeval",)
    by_words = False
    higher_is_better = True

    def __init__(self, *, language: str, score: Literal["radgraph", "radeval_bertscore"] = "radgraph") -> None:
        require_english("radeval", language)
        self.score = score
        package = import_package("radeval", "radeval", "radeval")
        try:
            with warnings.catch_warnings():  # it would silence the warnings of all others
                self._scorer = package.RadEval(metrics=[score], per_sample=True, show_progress=False)
        except (OSError, ImportError, ValueError, RuntimeError) as error:
            raise UserError(
                "external-program",
                f"'{score}' does not start ({first_line(error)})",
                place="metric radeval",
                hint="Its models come from the model hub or the hub's cache (HF_HOME).",
            ) from error
        self._last = LastResult()

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split` or `empty-report`."""
        return {name: float(value) for name, value in self.compute(self.per_exam_stats(pairs).sum(0)).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report: all values of the package, and 1."""
        return self._last.get(pairs, lambda: self._rows(pairs))

    def _rows(self, pairs: Sequence[Pair]) -> np.ndarray:
        keys = VALUES[self.score]
        rows = np.zeros((len(pairs), len(keys) + 1))
        rows[:, -1] = 1
        if asked := indices_with_words("radeval", pairs):
            with warnings.catch_warnings():
                scores = self._scorer(
                    refs=[pairs[number].reference for number in asked],
                    hyps=[pairs[number].prediction for number in asked],
                )
            for place, key in enumerate(keys):
                rows[asked, place] = finite_values("radeval", scores.get(key, ()), len(asked))
        return rows

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The means from sums over exams, [..., values and 1]."""
        means = sums[..., :-1] / sums[..., -1:]
        parts = {f"radeval/{key}": means[..., place] for place, key in enumerate(VALUES[self.score])}
        return {"radeval": means[..., 0], **parts}
