"""What metrics with models of their own need: of the machine and the reports, and a memory of what was scored last."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framework.exam import Pair
from framework.runtime.errors import first_line

LETTER = re.compile(r"[^\W\d_]")


def require_english(metric: str, language: str) -> None:
    """Raises ValueError for reports in another language, of which the metric's models and tables know nothing."""
    if language != "en":
        raise ValueError(
            f"metric {metric}: it knows English alone, and these reports are in '{language}'. Take it out of "
            "evaluate.metrics; bleu, chrf, findings_f1 and bertscore (with a model of the language) score them"
        )


def imported(metric: str, module: str, extra: str) -> Any:
    """A package that a metric is made of.

    Raises:
        ValueError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # what a package with a broken library raises
        raise ValueError(
            f"metric {metric}: the package {module} does not import here ({first_line(error)}): pip install "
            f"'sonoscribe[{extra}]', or take it out of evaluate.metrics"
        ) from None


def package_folder(metric: str, module: str, extra: str) -> Path:
    """Where a package lies, without importing it.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"metric {metric}: the package {module} is not installed: pip install 'sonoscribe[{extra}]', or take it "
            "out of evaluate.metrics"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def with_letters(metric: str, pairs: Sequence[Pair]) -> list[int]:
    """The pairs, by number, whose prediction says something: models for whole texts stumble over empty ones.

    Raises:
        ValueError: there are no pairs, or a reference says nothing.
    """
    if not pairs:
        raise ValueError(f"metric {metric}: no reports: the split is empty")
    for pair in pairs:
        if not LETTER.search(pair.reference):
            raise ValueError(f"metric {metric}: the reference of exam {pair.exam_id} has no words")
    return [number for number, pair in enumerate(pairs) if LETTER.search(pair.prediction)]


def one_each(metric: str, values: Any, asked: int) -> np.ndarray:
    """The values of a package, a finite number for each report.

    Raises:
        ValueError: it gave others.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (asked,) or not np.isfinite(found).all():
        raise ValueError(
            f"metric {metric}: its package gave values of shape {found.shape}, not a finite number for each of {asked} "
            "reports; its version may be another than this was written for"
        )
    return found


class LastRows:
    """The rows that a metric gave of the last reports: their intervals ask for the same again, and models are slow."""

    def __init__(self) -> None:
        self._asked: list[tuple[str, str]] | None = None
        self._rows = np.zeros((0, 0))

    def of(self, pairs: Sequence[Pair], make: Callable[[], np.ndarray]) -> np.ndarray:
        """The rows of pairs, by `make` where these are not the last ones, text by text."""
        asked = [(pair.prediction, pair.reference) for pair in pairs]
        if asked != self._asked:
            self._rows, self._asked = make(), asked
        return self._rows.copy()
