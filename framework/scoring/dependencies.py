"""Checks of the packages and reports that model-based metrics need, and a cache of their last result."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framework.exam import Pair
from framework.runtime.errors import UserError, first_line
from framework.scoring.pairs import require_pairs

LETTER = re.compile(r"[^\W\d_]")


def require_english(metric: str, language: str) -> None:
    """Raises UserError if the reports are not in English, the only language of the metric."""
    if language != "en":
        raise UserError(
            "unsupported",
            f"the metric scores English only, and the reports are in '{language}'",
            place=f"metric {metric}",
            hint="Use bleu, chrf, findings_f1, or bertscore with a model of the language.",
        )


def import_package(metric: str, module: str, extra: str) -> Any:
    """Imports a package that a metric needs.

    Raises:
        UserError: the package is not installed or does not import.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # RuntimeError, OSError: a broken binary
        raise _missing_package(metric, f"the package {module} does not import: {first_line(error)}", extra) from None


def package_folder(metric: str, module: str, extra: str) -> Path:
    """The folder of a package, found without importing it.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise _missing_package(metric, f"the package {module} is not installed", extra)
    return Path(next(iter(spec.submodule_search_locations)))


def _missing_package(metric: str, found: str, extra: str) -> UserError:
    hint = f"pip install 'sonoscribe[{extra}]', or remove the metric from evaluate.metrics."
    return UserError("missing-package", found, place=f"metric {metric}", hint=hint)


def indices_with_words(metric: str, pairs: Sequence[Pair]) -> list[int]:
    """Indices of the pairs whose prediction has words; models of whole texts fail on empty ones.

    Raises:
        UserError: there are no pairs, or a reference has no words.
    """
    require_pairs(metric, pairs)
    for pair in pairs:
        if not LETTER.search(pair.reference):
            raise UserError(
                "empty-report", f"metric {metric} cannot score a reference without words", place=f"exam {pair.exam_id}"
            )
    return [number for number, pair in enumerate(pairs) if LETTER.search(pair.prediction)]


def finite_values(metric: str, values: Any, count: int) -> np.ndarray:
    """The values that a package returned, checked to be one finite number per report.

    Raises:
        UserError: they are not.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise UserError(
            "non-finite",
            f"its package returned values of shape {found.shape}",
            place=f"metric {metric}",
            expected=f"one finite number for each of {count} reports",
            hint="The installed version of the package may be unsupported.",
        )
    return found


class LastResult:
    """Caches a metric's statistics of the last reports: models are slow, and bootstrap intervals ask again."""

    def __init__(self) -> None:
        self._texts: list[tuple[str, str]] | None = None
        self._stats = np.zeros((0, 0))

    def get(self, pairs: Sequence[Pair], compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The statistics of the pairs; calls `compute` unless their texts equal the last ones."""
        texts = [(pair.prediction, pair.reference) for pair in pairs]
        if texts != self._texts:
            self._stats, self._texts = compute(), texts
        return self._stats.copy()
