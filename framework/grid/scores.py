"""Scores that a grid names, such as test/bleu_4: whether a recipe produces them, and which way is better."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from framework.recipe import Choice, Recipe
from framework.recipe.schema import WEIGHTED_SUM
from framework.recipe.score_names import higher_is_better as higher_is_better_in
from framework.registry import did_you_mean, find
from framework.registry.signature import class_texts
from framework.runtime.errors import Problem, UserError


def base_score(name: str) -> str:
    """The metric's own name of a score: `findings_f1` for test/findings_f1/margin, `bleu_4` for test/bleu_4_char."""
    return name.partition("/")[2].split("/")[0].removesuffix("_char")


def check_score(
    name: str, recipes: Sequence[Recipe], place: str = "", splits: Sequence[str] = ("test", "val")
) -> Problem | None:
    """The problem with the name of a score; None if a recipe may produce it."""
    split, _, score = name.partition("/")
    if split not in splits or not score:
        expected = " or ".join(f"{split}/<score>" for split in splits)
        return Problem("unknown-name", f"found {name!r}", place, expected)
    known: dict[str, None] = {}
    for recipe in recipes:
        for chosen in recipe.evaluate.metrics:
            names = class_texts(find("metric", chosen.name, recipe.plugin_files), "names")
            if names is None:
                return None  # the metric names its scores at run time
            known |= dict.fromkeys(names)
        if not recipe.evaluate.metrics:
            known |= dict.fromkeys(recipe.active_losses)
        if recipe.evaluate.weights:
            known[WEIGHTED_SUM] = None
    if base_score(name) in known or score.split("/")[0] in known:
        return None
    hint = f"{did_you_mean(score, known)} Known: {', '.join(f'{split}/{name}' for name in known)}".strip()
    return Problem("unknown-name", f"no metric of the recipe produces {score!r}", place, hint=hint)


def higher_is_better(name: str, recipes: Sequence[Recipe]) -> bool:
    """Whether a higher value of a score is better, as its metric declares.

    Raises:
        UserError: no metric of the recipes produces it.
    """
    scores = name.partition("/")[2].split("/")[0], base_score(name)
    for recipe in recipes:
        if (found := higher_is_better_in(recipe, scores, partial(_build_metric, recipe))) is not None:
            return found
    problem = check_score(name, recipes) or Problem("unknown-name", f"no metric produces {name!r}")
    raise UserError.of([problem])


def _build_metric(recipe: Recipe, choice: Choice) -> Any:
    """A metric that is only asked for its names, so the language is that of the recipe's tokenizer, or English."""
    from framework.build import build_plugin  # torch takes seconds to import

    language = recipe.data.tokenizer.keys.get("language")
    return build_plugin(recipe, "metric", choice, language=language if language in ("en", "zh") else "en")
