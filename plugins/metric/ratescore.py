"""RaTEScore: agreement on medical entities and what is said of them, by its authors' package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from framework.exam import Pair
from framework.models.device import on_cpu
from framework.models.pretrained import weight_files, weights_folder
from framework.registry import register
from framework.runtime.errors import first_line
from framework.scoring.dependencies import LastRows, imported, one_each, require_english, with_letters


@register("metric", "ratescore")
class RateScore:
    """Agreement on entities (anatomy, abnormality, disease, and what is denied), as a mean over reports. 0 to 1.

    One model finds the entities of both texts and their kinds, another says which mean the same; kinds weigh by a table
    of the authors'. Made for English radiology of any body part. Everything is done by the package RaTEScore; here its
    models are read from folders with safetensors alone, and reports without a letter score 0 unasked. Where one of
    the two texts has no entity, the package gives 0.5, and so does this: a model that never writes one has 0.5, not 0.

    Written against RaTEScore 0.6.0, and tested with a stand-in that has its interface: the package with its models was
    not run here.

    Args:
        recognizer: The model that finds entities: a folder with config.json, tokenizer and model.safetensors, or a
            name on the model hub.
        synonyms: The model that compares them, in the same way.
        affinity: Which of the authors' tables says how kinds weigh: the one for long or for short reports.
        batch_size: Sentences at a time.

    Source:
        Zhao et al. 2024, arXiv 2406.16845, section 3.

    Raises:
        ValueError: the package is missing, a model is, or the reports are not in English.
    """

    names = ("ratescore",)
    by_words = False
    higher_is_better = True

    def __init__(
        self,
        *,
        language: str,
        recognizer: str = "Angelakeke/RaTE-NER-Deberta",
        synonyms: str = "FremyCompany/BioLORD-2023-C",
        affinity: Literal["long", "short"] = "long",
        batch_size: PositiveInt = 16,
    ) -> None:
        require_english("ratescore", language)
        package = imported("ratescore", "RaTEScore", "ratescore")
        folders = {"bert_model": _folder(recognizer, "recognizer"), "eval_model": _folder(synonyms, "synonyms")}
        try:
            self._scorer = package.RaTEScore(
                **{name: str(folder) for name, folder in folders.items()},
                batch_size=batch_size,
                use_gpu=not on_cpu(),
                affinity_matrix=affinity,
            )
        except (OSError, ImportError, ValueError, RuntimeError) as error:
            where = " and ".join(map(str, folders.values()))
            raise ValueError(
                f"metric ratescore: it cannot be made ({first_line(error)}). Its models are in {where}"
            ) from error
        self._last = LastRows()

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `ValueError` for no pairs, or a reference without words."""
        return {name: float(value) for name, value in self.compute(self.per_exam_stats(pairs).sum(0)).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of each report: its score, and 1."""
        return self._last.of(pairs, lambda: self._rows(pairs))

    def _rows(self, pairs: Sequence[Pair]) -> np.ndarray:
        rows = np.zeros((len(pairs), 2))
        rows[:, 1] = 1
        if asked := with_letters("ratescore", pairs):
            told = self._scorer.compute_score(
                [pairs[number].prediction for number in asked], [pairs[number].reference for number in asked]
            )
            rows[asked, 0] = one_each("ratescore", told, len(asked))
        return rows

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The value of sums over exams, [..., 2]: a mean."""
        return {"ratescore": sums[..., 0] / sums[..., 1]}


def _folder(weights: str, key: str) -> Path:
    """A folder that the package may read: of safetensors, as it would also read files that can carry code."""
    folder = weights_folder(weights, f"metric ratescore.{key}")
    if not weight_files(folder):
        raise ValueError(f"metric ratescore.{key}: no *.safetensors in {folder}; files of other kinds could carry code")
    return folder
