"""RadEval: scores of radiology reports that need models of their own, such as RadGraph F1, by the package radeval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.runtime.errors import first_line
from framework.scoring.dependencies import LastRows, imported, one_each, require_english, with_letters

# What each gives of a report; the first is the score, the others stand beside it.
GIVES = {
    "radgraph": ("radgraph_partial", "radgraph_simple", "radgraph_complete"),
    "radeval_bertscore": ("radeval_bertscore",),
}


@register("metric", "radeval")
class RadEval:
    """A score of the package radeval as a mean over reports: RadGraph F1, or BERTScore by a model of radiology reports.

    `radeval` is the score that is asked for; all that the package gives of it stands beside it, as
    `radeval/radgraph_complete`. Of the package's scores those are offered that are better when higher, send no report
    to a service, run no code of a downloaded model, and are not of chest findings alone. The package fetches its models
    from the model hub itself, under names that it does not let one choose: without network they must lie in the hub's
    cache (HF_HOME). It reads other files of weights than safetensors too, which this project elsewhere refuses. Reports
    without a letter score 0 unasked.

    Written against radeval 2.2.1, and tested with a stand-in that has its interface: the package with its models was
    not run here.

    Args:
        score: `radgraph`, F1 of entities with what is said of them and whether they are related; or
            `radeval_bertscore`.

    Source:
        Xu et al. 2025, EMNLP System Demonstrations, "RadEval"; Jain et al. 2021, arXiv 2106.14463 (RadGraph).

    Raises:
        ValueError: the package or a model is missing, or the reports are not in English.
    """

    names = ("radeval",)
    by_words = False
    higher_is_better = True

    def __init__(self, *, language: str, score: Literal["radgraph", "radeval_bertscore"] = "radgraph") -> None:
        require_english("radeval", language)
        self.score = score
        package = imported("radeval", "radeval", "radeval")
        try:
            with warnings.catch_warnings():  # it silences the warnings of all others for good
                self._scorer = package.RadEval(metrics=[score], per_sample=True, show_progress=False)
        except (OSError, ImportError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"metric radeval: '{score}' cannot be made ({first_line(error)}). Its models come from the model hub "
                "or the hub's cache (HF_HOME)"
            ) from error
        self._last = LastRows()

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `ValueError` for no pairs, or a reference without words."""
        return {name: float(value) for name, value in self.compute(self.per_exam_stats(pairs).sum(0)).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of each report: all that is given of it, and 1."""
        return self._last.of(pairs, lambda: self._rows(pairs))

    def _rows(self, pairs: Sequence[Pair]) -> np.ndarray:
        keys = GIVES[self.score]
        rows = np.zeros((len(pairs), len(keys) + 1))
        rows[:, -1] = 1
        if asked := with_letters("radeval", pairs):
            with warnings.catch_warnings():  # its scores do so too
                told = self._scorer(
                    refs=[pairs[number].reference for number in asked],
                    hyps=[pairs[number].prediction for number in asked],
                )
            for place, key in enumerate(keys):
                rows[asked, place] = one_each("radeval", told.get(key, ()), len(asked))
        return rows

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The values of sums over exams, [..., values and 1]: means."""
        means = sums[..., :-1] / sums[..., -1:]
        parts = {f"radeval/{key}": means[..., place] for place, key in enumerate(GIVES[self.score])}
        return {"radeval": means[..., 0], **parts}
