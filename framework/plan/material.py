"""What a recipe's data say before an image is loaded: exams, views, words, tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from framework.build import build_dataset, build_tokenizer, load_exams, require_no_mirrored_sides
from framework.exam import Exam
from framework.recipe import Recipe


@dataclass(frozen=True)
class Material:
    """The exams by split, the tokenizer fitted on the training reports, and these reports as training sees them."""

    splits: dict[str, list[Exam]]
    tokenizer: Any
    tokens: list[list[int]]


@dataclass(frozen=True)
class Views:
    """Views of an exam, over all splits."""

    least: int
    mean: float
    most: int


@dataclass(frozen=True)
class Tokens:
    """Tokens of the training reports, begin and end included, after the cut at evaluate.max_length."""

    mean: float
    p95: int  # 95 of 100 reports are no longer
    longest: int
    total: int
    cut: int  # reports that are longer than evaluate.max_length


def read_material(recipe: Recipe) -> Material:
    splits = load_exams(build_dataset(recipe))
    reports = [exam.report for exam in splits["train"]]
    require_no_mirrored_sides(recipe, reports)
    tokenizer = build_tokenizer(recipe, reports, None)
    return Material(splits, tokenizer, [tokenizer.encode(report, recipe.evaluate.max_length) for report in reports])


def count_views(material: Material) -> Views:
    views = [len(exam.views) for exams in material.splits.values() for exam in exams]
    return Views(min(views), sum(views) / len(views), max(views))


def count_tokens(material: Material) -> Tokens:
    lengths = sorted(map(len, material.tokens))
    whole = [len(material.tokenizer.encode(exam.report)) for exam in material.splits["train"]]
    return Tokens(
        mean=sum(lengths) / len(lengths),
        p95=lengths[math.ceil(0.95 * len(lengths)) - 1],
        longest=lengths[-1],
        total=sum(lengths),
        cut=sum(length > len(kept) for length, kept in zip(whole, material.tokens)),
    )
