"""What the reports of a cell score on resamples of the exams, from what its run has written: no images, no weights.

Shapes: E exams, R resamples of them, S sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from framework.exam import Pair
from framework.grid.results import CellResult
from framework.recipe.schema import WEIGHTED_SUM
from framework.scoring.bootstrap import ResampleError, Values, by_calls, by_sums
from framework.scoring.scorer import CHARACTER

BY_CHARACTERS = "_char"  # how Scorer calls the score of single characters
ROUNDED = 2e-6  # scores.json has six decimals


class NotComparableError(ValueError):
    """Why there is no difference to the baseline."""


class Home(NamedTuple):
    """Where a score comes from."""

    number: int  # of the metric, in the recipe's list
    name: str  # of the value there
    by_characters: bool


class Written:
    """The reports that a cell wrote on a split."""

    def __init__(self, cell: CellResult, split: str, like: Written | None = None) -> None:
        """Reads them, in the order of `like`.

        Raises:
            NotComparableError: they cannot be read, or they are of other exams, references or words than `like`.
        """
        from framework.build import build_scorer, build_tokenizer, run_recipe  # torch takes seconds to import

        self.cell, self.split, self.like = cell, split, like
        try:
            recipe = run_recipe(cell.run)
            self.choices, self.plugin_files = recipe.evaluate.metrics, recipe.plugin_files
            self.scorer = build_scorer(recipe, build_tokenizer(recipe, [], cell.run / "model"))
            lines = (cell.run / "predictions" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            reports = {line["id"]: line for line in map(json.loads, lines)}
        except (OSError, ValueError) as error:
            raise NotComparableError(f"seed {cell.seed}: {error}") from None
        self.references: dict[str, str] = {name: line["reference"] for name, line in reports.items()}
        if like is not None:
            self._alike(like)
            self.references = like.references
            if (self.choices, self.plugin_files) == (like.choices, like.plugin_files):
                self.scorer = like.scorer  # CIDEr knows these references already
        self._texts = [(name, reports[name]["prediction"], text) for name, text in self.references.items()]
        self._pairs: dict[bool, list[Pair]] = {}
        self._ways: dict[tuple[int, bool], Values] = {}

    def _alike(self, like: Written) -> None:
        mine, theirs = f"seed {self.cell.seed}", f"seed {like.cell.seed} of the baseline"
        strangers = len(self.references.keys() ^ like.references.keys())
        if strangers:
            raise NotComparableError(f"{strangers} exams are only in one of {mine} and {theirs}")
        others = [name for name, text in self.references.items() if text != like.references[name]]
        if others:
            raise NotComparableError(
                f"{mine} has other references than {theirs}: {len(others)} of {len(self.references)}, such as of exam "
                f"{others[0]}"
            )
        if self.scorer.segmentation != like.scorer.segmentation:
            raise NotComparableError(
                f"{mine} is scored on '{self.scorer.segmentation}', {theirs} on '{like.scorer.segmentation}'"
            )

    def check(self, score: str, like: Written) -> None:
        """Raises NotComparableError unless this score can be resampled, and is made as that of `like`."""
        stored = self.cell.scores.get(f"{self.split}/{score}")
        if stored is None:
            raise NotComparableError(f"seed {self.cell.seed} has no such score")
        home, theirs = self.home(score), like.home(score)
        if self.choices[home.number] != like.choices[theirs.number]:
            raise NotComparableError(
                f"seed {self.cell.seed} has metric '{self.choices[home.number].name}' with other keys than the baseline"
            )
        if "/" in home.name and not self.has_sums(score):
            raise NotComparableError(
                f"it is a part, which a resample may lack, and metric '{self.choices[home.number].name}' has no "
                "per_exam_stats and compute"
            )
        again = float(self.values([score], np.ones((1, len(self.references))))[score][0])
        if abs(again - stored) > ROUNDED:
            raise NotComparableError(
                f"seed {self.cell.seed}: its predictions score {again:.6f} and scores.json says {stored:.6f}; "
                f"score them anew: launch.py evaluate {self.cell.run} --split {self.split}"
            )

    def home(self, score: str) -> Home:
        """Raises NotComparableError where no metric of the recipe gives the score."""
        for number, metric in enumerate(self.scorer.metrics):
            if score.split("/")[0] in metric.names:
                return Home(number, score, by_characters=False)
        word = score.removesuffix(BY_CHARACTERS)
        for number, metric in enumerate(self.scorer.metrics):
            if word != score and metric.by_words and word.split("/")[0] in metric.names:
                return Home(number, word, by_characters=True)
        if score == WEIGHTED_SUM:
            raise NotComparableError("a weighted sum of scores is not; compare the scores themselves")
        raise NotComparableError(f"seed {self.cell.seed} has no metric that gives it")

    def has_sums(self, score: str) -> bool:
        """Whether its metric offers sums over exams (framework/testing/metric.py), so that resamples cost little."""
        return hasattr(self.scorer.metrics[self.home(score).number], "per_exam_stats")

    def values(self, scores: Sequence[str], counts_RE: np.ndarray) -> dict[str, np.ndarray]:
        """Scores, each [R], by how often each exam counts."""
        of_metric: dict[tuple[int, bool], dict[str, np.ndarray]] = {}
        found = {}
        for score in scores:
            number, name, by_characters = self.home(score)
            key = number, by_characters
            if key not in self._ways:
                metric, pairs = self.scorer.metrics[number], self._cut(by_characters)
                self._ways[key] = (
                    by_sums(metric, pairs) if hasattr(metric, "per_exam_stats") else by_calls(metric, pairs)
                )
            if key not in of_metric:
                try:
                    of_metric[key] = self._ways[key](counts_RE)
                except ResampleError as error:
                    raise NotComparableError(str(error)) from error
            found[score] = of_metric[key][name]
        return found

    def _cut(self, by_characters: bool) -> list[Pair]:
        """Pairs of words, or of characters; the words of references are those of `like`."""
        if by_characters not in self._pairs:
            cut: Callable[[str], list[str]] = CHARACTER.findall if by_characters else self.scorer.tokenizer.segment
            known = None if self.like is None else self.like._cut(by_characters)
            self._pairs[by_characters] = [
                Pair(
                    name,
                    written,
                    true,
                    tuple(cut(written)),
                    known[number].reference_words if known else tuple(cut(true)),
                )
                for number, (name, written, true) in enumerate(self._texts)
            ]
        return self._pairs[by_characters]
