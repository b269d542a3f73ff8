"""Scores of a cell on resampled exams, computed from the reports that its run wrote: no images, no weights.

Shapes: E exams, R resamples of them, S sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, NotRequired

import numpy as np
from typing_extensions import TypedDict  # pydantic takes that of Python from 3.12 on

from framework.exam import Pair
from framework.grid.results import CellResult
from framework.grid.state_file import parse_state
from framework.recipe import result_tree
from framework.recipe.schema import WEIGHTED_SUM
from framework.runtime.files import read_lines
from framework.scoring.bootstrap import ResampleError, Values, by_calls, by_sums
from framework.scoring.scorer import CHARACTER

BY_CHARACTERS = "_char"  # suffix that Scorer gives to scores of characters
ROUNDING = 2e-6  # scores.json has six decimals


class NotComparableError(Exception):
    """The reason why a row or a score is not compared with the baseline. It becomes a notice of the table."""


class MetricValue(NamedTuple):
    """The metric that a score comes from."""

    number: int  # of the metric, in the recipe's list
    name: str  # of the metric's value
    by_characters: bool


class WrittenReport(TypedDict):
    """A line of predictions/SPLIT.jsonl."""

    id: str
    reference: str
    prediction: str
    attributes: NotRequired[dict[str, str]]  # of the exam: those that a metric reads


class WrittenReports:
    """The reports of a cell on a split."""

    def __init__(self, cell: CellResult, split: str, like: WrittenReports | None = None) -> None:
        """Reads the reports, in the order of `like`.

        Raises:
            NotComparableError: they cannot be read, or differ from `like` in exams, references or segmentation.
        """
        from framework.build import build_scorer, build_tokenizer, run_recipe  # torch takes seconds to import

        self.cell, self.split, self.like = cell, split, like
        try:
            recipe = run_recipe(cell.run)
            self.choices, self.code = recipe.evaluate.metrics, result_tree(recipe)["plugins"]
            self.scorer = build_scorer(recipe, build_tokenizer(recipe, [], cell.run / "model"))
            path = cell.run / "predictions" / f"{split}.jsonl"
            lines = [
                parse_state(WrittenReport, line, f"{path}:{number}", "Evaluate the run again.")
                for number, line in enumerate(read_lines(path), 1)
            ]
            reports = {line["id"]: line for line in lines}
        except (OSError, ValueError) as error:
            raise NotComparableError(f"seed {cell.seed}: {error}") from None
        self.references: dict[str, str] = {name: line["reference"] for name, line in reports.items()}
        if like is not None:
            self._check_like(like)
            self.references = like.references
            if (self.choices, self.code) == (like.choices, like.code):
                self.scorer = like.scorer  # which has prepared CIDEr for these references
        self._texts = [(name, reports[name]["prediction"], text) for name, text in self.references.items()]
        self._attributes = {name: line.get("attributes", {}) for name, line in reports.items()}
        self._pairs: dict[bool, list[Pair]] = {}
        self._resamplers: dict[tuple[int, bool], Values] = {}

    def _check_like(self, like: WrittenReports) -> None:
        mine, theirs = f"seed {self.cell.seed}", f"seed {like.cell.seed} of the baseline"
        unmatched = len(self.references.keys() ^ like.references.keys())
        if unmatched:
            raise NotComparableError(f"{unmatched} exams are in only one of {mine} and {theirs}")
        differing = [name for name, text in self.references.items() if text != like.references[name]]
        if differing:
            raise NotComparableError(
                f"{mine} has other references than {theirs}: {len(differing)} of {len(self.references)}, such as "
                f"that of exam {differing[0]}"
            )
        if self.scorer.segmentation != like.scorer.segmentation:
            raise NotComparableError(
                f"{mine} is scored on '{self.scorer.segmentation}', {theirs} on '{like.scorer.segmentation}'"
            )

    def check(self, score: str, like: WrittenReports) -> None:
        """Raises NotComparableError unless this score can be resampled, and its metric has the keys that `like` has."""
        stored = self.cell.scores.get(f"{self.split}/{score}")
        if stored is None:
            raise NotComparableError(f"seed {self.cell.seed} has no such score")
        value, baseline_value = self.metric_value(score), like.metric_value(score)
        if self.choices[value.number] != like.choices[baseline_value.number]:
            name = self.choices[value.number].name
            raise NotComparableError(f"seed {self.cell.seed} has metric '{name}' with other keys than the baseline")
        if "/" in value.name and not self.has_sums(score):
            raise NotComparableError(
                f"a resample may lack this part of the score, and metric '{self.choices[value.number].name}' has no "
                "per_exam_stats and compute"
            )
        rescored = float(self.values([score], np.ones((1, len(self.references))))[score][0])
        if abs(rescored - stored) > ROUNDING:
            raise NotComparableError(
                f"seed {self.cell.seed}: its predictions score {rescored:.6f}, but scores.json has {stored:.6f}; "
                f"score them again: launch.py evaluate {self.cell.run} --split {self.split}"
            )

    def metric_value(self, score: str) -> MetricValue:
        """The metric of a score. Raises NotComparableError if no metric of the recipe produces it."""
        for number, metric in enumerate(self.scorer.metrics):
            if score.split("/")[0] in metric.names:
                return MetricValue(number, score, by_characters=False)
        word = score.removesuffix(BY_CHARACTERS)
        for number, metric in enumerate(self.scorer.metrics):
            if word != score and metric.by_words and word.split("/")[0] in metric.names:
                return MetricValue(number, word, by_characters=True)
        if score == WEIGHTED_SUM:
            raise NotComparableError("a weighted sum of scores cannot be resampled; compare the scores themselves")
        raise NotComparableError(f"seed {self.cell.seed} has no metric that produces it")

    def has_sums(self, score: str) -> bool:
        """Whether its metric has statistics per exam (framework/testing/metric.py), which makes resamples cheap."""
        return hasattr(self.scorer.metrics[self.metric_value(score).number], "per_exam_stats")

    def values(self, scores: Sequence[str], counts_RE: np.ndarray) -> dict[str, np.ndarray]:
        """Scores, each [R], from the counts of each exam in each resample."""
        of_metric: dict[tuple[int, bool], dict[str, np.ndarray]] = {}
        found = {}
        for score in scores:
            number, name, by_characters = self.metric_value(score)
            key = number, by_characters
            if key not in self._resamplers:
                metric, pairs = self.scorer.metrics[number], self._segmented(by_characters)
                resample = by_sums if hasattr(metric, "per_exam_stats") else by_calls
                self._resamplers[key] = resample(metric, pairs)
            if key not in of_metric:
                try:
                    of_metric[key] = self._resamplers[key](counts_RE)
                except ResampleError as error:
                    raise NotComparableError(str(error)) from error
            found[score] = of_metric[key][name]
        return found

    def _segmented(self, by_characters: bool) -> list[Pair]:
        """Pairs of words or characters; those of the references are shared with `like`."""
        if by_characters not in self._pairs:
            segment: Callable[[str], list[str]] = CHARACTER.findall if by_characters else self.scorer.tokenizer.segment
            known = None if self.like is None else self.like._segmented(by_characters)
            self._pairs[by_characters] = [
                Pair(
                    name,
                    written,
                    true,
                    tuple(segment(written)),
                    known[number].reference_words if known else tuple(segment(true)),
                    self._attributes[name],
                )
                for number, (name, written, true) in enumerate(self._texts)
            ]
        return self._pairs[by_characters]
