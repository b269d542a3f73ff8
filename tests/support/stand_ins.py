"""Modules with the interface of packages that the adapters use and that are not installed here."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any


def _overlap(first: str, second: str) -> float:
    one, other = set(first.lower().split()), set(second.lower().split())
    return 2 * len(one & other) / (len(one) + len(other))


class RaTEScore:
    """As in RaTEScore 0.6.0: empty texts are not answered, and each answer after them is another report's.

    Entities are all words but a few; where one of two texts has none, the answer is 0.5.
    """

    NO_ENTITIES = frozenset({"the", "is", "seen", "there"})

    def __init__(
        self,
        bert_model: str = "Angelakeke/RaTE-NER-Deberta",
        eval_model: str = "FremyCompany/BioLORD-2023-C",
        batch_size: int = 1,
        use_gpu: bool = True,
        visualization_path: str | None = None,
        affinity_matrix: str = "long",
    ) -> None:
        assert affinity_matrix in ("long", "short") and visualization_path is None and batch_size > 0
        self.folders = Path(bert_model), Path(eval_model)
        assert all(folder.is_dir() for folder in self.folders)

    def compute_score(self, candidate_list: list[str], reference_list: list[str]) -> list[float]:
        if not isinstance(candidate_list, list) or not isinstance(reference_list, list):
            raise ValueError("candidate must be a list")
        assert len(candidate_list) == len(reference_list)
        predicted, true = ([text for text in texts if text.split()] for texts in (candidate_list, reference_list))
        return [0.5 if self._has_none(a) or self._has_none(b) else _overlap(a, b) for a, b in zip(predicted, true)]

    def _has_none(self, text: str) -> bool:
        return not {word.strip(".,") for word in text.lower().split()} - self.NO_ENTITIES


class RadEval:
    """As in radeval 2.2.1."""

    def __init__(
        self,
        metrics: Any = None,
        openai_api_key: str | None = None,
        gemini_api_key: str | None = None,
        per_sample: bool = False,
        detailed: bool = False,
        show_progress: bool = True,
        cache_dir: str | None = None,
    ) -> None:
        self.metrics, self.per_sample = list(metrics), per_sample

    def __call__(self, refs: list[str], hyps: list[str]) -> dict[str, Any]:
        if not (isinstance(hyps, list) and isinstance(refs, list)):
            raise TypeError("hyps and refs must be of type list")
        assert self.per_sample and all(text.split() for text in hyps)
        each = [_overlap(hyp, ref) for hyp, ref in zip(hyps, refs)]
        if self.metrics == ["radgraph"]:
            return {
                "radgraph_simple": [min(1.0, 1.1 * value) for value in each],
                "radgraph_partial": each,
                "radgraph_complete": [0.9 * value for value in each],
            }
        return {"radeval_bertscore": each}


def put_in_place(name: str, what: type) -> None:
    """Makes `import name` find a module that holds this class."""
    module = types.ModuleType(name)
    setattr(module, what.__name__, what)
    sys.modules[name] = module
