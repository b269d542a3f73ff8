"""What is known of a recipe's data without loading images: exams, views, words, tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from framework.build import build_dataset, build_tokenizer, load_exams, require_no_mirrored_sides
from framework.exam import Exam
from framework.recipe import Recipe


@dataclass(frozen=True)
class PlanInputs:
    """The exams by split, the fitted tokenizer, and the token ids of the training reports."""

    splits: dict[str, list[Exam]]
    tokenizer: Any
    tokens: list[list[int]]


@dataclass(frozen=True)
class Views:
    """Number of views per exam, over all splits."""

    least: int
    mean: float
    most: int


@dataclass(frozen=True)
class Tokens:
    """Tokens per training report, with BOS and EOS, truncated to evaluate.max_length."""

    mean: float
    p95: int  # 95th percentile
    longest: int
    total: int
    truncated: int  # number of reports longer than evaluate.max_length


def read_inputs(recipe: Recipe) -> PlanInputs:
    splits = load_exams(build_dataset(recipe))
    reports = [exam.report for exam in splits["train"]]
    require_no_mirrored_sides(recipe, reports)
    tokenizer = build_tokenizer(recipe, reports, None)
    return PlanInputs(splits, tokenizer, [tokenizer.encode(report, recipe.evaluate.max_length) for report in reports])


def count_views(inputs: PlanInputs) -> Views:
    views = [len(exam.views) for exams in inputs.splits.values() for exam in exams]
    return Views(min(views), sum(views) / len(views), max(views))


def count_tokens(inputs: PlanInputs) -> Tokens:
    lengths = sorted(map(len, inputs.tokens))
    full = [len(inputs.tokenizer.encode(exam.report)) for exam in inputs.splits["train"]]
    return Tokens(
        mean=sum(lengths) / len(lengths),
        p95=lengths[math.ceil(0.95 * len(lengths)) - 1],
        longest=lengths[-1],
        total=sum(lengths),
        truncated=sum(length > len(ids) for length, ids in zip(full, inputs.tokens)),
    )
