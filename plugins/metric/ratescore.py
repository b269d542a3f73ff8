"""RaTEScore: agreement on medical entities, by the authors' package."""

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
from framework.runtime.errors import UserError, first_line
from framework.scoring.dependencies import (
    LastResult,
    finite_values,
    import_package,
    indices_with_words,
    require_english,
)


@register("metric", "ratescore")
class RateScore:
    """Agreement on entities (anatomy, abnormality, disease, and their negations), mean over reports. 0 to 1.

    One model finds the entities of both texts and their types, another compares them; a table of the authors' weights
    the types. For English radiology of any body part. The package RaTEScore does the computation; its models are read
    only from folders with safetensors, and reports without a letter score 0. If one of the two texts has no entity, the
    package returns 0.5, so a model that never writes an entity scores 0.5, not 0.

    Written for RaTEScore 0.6.0 and tested with a stand-in of the same interface, not with the package's models.

    Args:
        recognizer: Model that finds entities: a folder with config.json, tokenizer and model.safetensors, or a name on
            the model hub.
        synonyms: Model that compares entities: a folder, or a name on the model hub.
        affinity: The authors' table of type weights: for `long` or for `short` reports.
        batch_size: Sentences per forward pass.

    Source:
        Zhao et al. 2024, arXiv 2406.16845, section 3.

    Raises:
        UserError: the package or a model is missing, or the reports are not in English.
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
        package = import_package("ratescore", "RaTEScore", "ratescore")
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
            raise UserError(
                "external-program",
                f"it does not start ({first_line(error)})",
                place="metric ratescore",
                hint=f"Its models are in {where}.",
            ) from error
        self._last = LastResult()

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split` or `empty-report`."""
        return {name: float(value) for name, value in self.compute(self.per_exam_stats(pairs).sum(0)).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report: its score, and 1."""
        return self._last.get(pairs, lambda: self._rows(pairs))

    def _rows(self, pairs: Sequence[Pair]) -> np.ndarray:
        rows = np.zeros((len(pairs), 2))
        rows[:, 1] = 1
        if asked := indices_with_words("ratescore", pairs):
            scores = self._scorer.compute_score(
                [pairs[number].prediction for number in asked], [pairs[number].reference for number in asked]
            )
            rows[asked, 0] = finite_values("ratescore", scores, len(asked))
        return rows

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The mean from sums over exams, [..., 2]."""
        return {"ratescore": sums[..., 0] / sums[..., 1]}


def _folder(weights: str, key: str) -> Path:
    """A folder of safetensors: the package would also read files that can carry code."""
    folder = weights_folder(weights, f"metric ratescore.{key}")
    if not weight_files(folder):
        raise UserError(
            "no-such-file",
            f"no *.safetensors in {folder}",
            place=f"metric ratescore.{key}",
            hint="Other files are not read, since they could carry code.",
        )
    return folder
