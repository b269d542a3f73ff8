"""Scores that a grid names, such as test/bleu_4: whether its recipe's metrics give them, and which way is better."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from framework.recipe import Choice, Recipe
from framework.recipe.schema import WEIGHTED_SUM
from framework.recipe.score_names import higher_is_better as by_names
from framework.registry import did_you_mean, find
from framework.registry.signature import class_texts

SPLITS = ("test", "val")


def score_of(metric: str) -> str:
    """The score that a metric gives by this name: `findings_f1` of test/findings_f1/margin, `bleu_4` of
    test/bleu_4_char.
    """
    return metric.partition("/")[2].split("/")[0].removesuffix("_char")


def problem_with(metric: str, recipes: Sequence[Recipe], splits: Sequence[str] = SPLITS) -> str | None:
    """What is wrong with the name of a score; None where a recipe may give it."""
    split, _, score = metric.partition("/")
    if split not in splits or not score:
        return f"found {metric!r}, expected {' or '.join(f'{split}/<score>' for split in splits)}"
    known: dict[str, None] = {}
    for recipe in recipes:
        for chosen in recipe.evaluate.metrics:
            names = class_texts(find("metric", chosen.name, recipe.plugin_files), "names")
            if names is None:
                return None  # it names its scores at run time
            known |= dict.fromkeys(names)
        if recipe.evaluate.weights:
            known[WEIGHTED_SUM] = None
    if score_of(metric) in known or score.split("/")[0] in known:
        return None
    all_known = ", ".join(f"{split}/{name}" for name in known)
    return f"no metric of the recipe gives '{score}'.{did_you_mean(score, known)} Known: {all_known}"


def higher_is_better(metric: str, recipes: Sequence[Recipe]) -> bool:
    """Whether more of a score is better, by the metric that gives it.

    Raises:
        ValueError: none of the recipes' metrics does.
    """
    scores = metric.partition("/")[2].split("/")[0], score_of(metric)
    for recipe in recipes:
        if (found := by_names(recipe, scores, partial(_unfitted, recipe))) is not None:
            return found
    raise ValueError(problem_with(metric, recipes) or f"no metric gives {metric}")


def _unfitted(recipe: Recipe, choice: Choice) -> Any:
    """A metric that is only asked for its names. Its language is what the tokenizer is told, as no report is read."""
    from framework.build import build_plugin  # torch takes seconds to import

    told = recipe.data.tokenizer.keys.get("language")
    return build_plugin(recipe, "metric", choice, language=told if told in ("en", "zh") else "en")
