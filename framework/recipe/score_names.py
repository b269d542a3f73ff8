"""Which metric gives a score, and whether higher is better, read from the files of metrics without importing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from framework.recipe.monitor import weight_problem
from framework.recipe.schema import WEIGHTED_SUM, Choice, Recipe
from framework.recipe.source import RecipeError
from framework.registry import Plugin, did_you_mean, find
from framework.registry.signature import class_flag, class_method, class_texts, keys_of
from framework.runtime.errors import Problem


def corpus_score_problem(score: str) -> Problem:
    """The problem of a score of a whole corpus, or of a truth about exams, where that of a single report is needed."""
    found = f"'{score}' is a score of many reports, and its metric has none for a single one"
    return Problem("unsupported", found, hint="Delete it.")


def metric_of(score: str, plugins: Mapping[tuple[str, str], Plugin], chosen: Sequence[str]) -> Plugin:
    """The metric that gives a score, by the literal `names` of metrics; of several, one of `chosen`.

    Args:
        plugins: all plugins that the recipe may name.
        chosen: the recipe's own metrics, whose keys it may set.

    Raises:
        RecipeError: no metric gives it, or one that has required keys.
    """
    metrics = [plugin for (kind, _), plugin in plugins.items() if kind == "metric"]
    metrics.sort(key=lambda plugin: (plugin.name not in chosen, plugin.name))
    known = {score: plugin for plugin in reversed(metrics) for score in class_texts(plugin, "names") or ()}
    if score not in known:
        hint = f"{did_you_mean(score, known)} Known: {', '.join(sorted(known))}".strip()
        raise RecipeError("unknown-name", f"no metric gives '{score}'", hint=hint)
    metric = known[score]
    required = [key.name for key in keys_of(metric) if key.required]
    if required and metric.name not in chosen:
        raise RecipeError(
            "missing-key", f"metric '{metric.name}' gives '{score}' and requires {', '.join(required)}",
            hint="Add it to evaluate.metrics with its keys.",
        )  # fmt: skip
    return metric


def reward_problem(score: str, weight: float, metric: Plugin) -> Problem | None:
    """The problem of a score in a reward, as far as its metric's file shows."""
    higher = class_flag(metric, "higher_is_better")
    if higher is not None and (problem := weight_problem(score, weight, higher)):
        return problem
    of_many = class_method(metric, "per_exam_stats") is False or class_method(metric, "exam_attributes") is True
    return corpus_score_problem(score) if of_many else None


def higher_is_better(recipe: Recipe, scores: Sequence[str], build: Callable[[Choice], Any]) -> bool | None:
    """Whether higher is better for a score or the weighted sum; None if no metric of the recipe gives it.

    Args:
        scores: names that the score may have.
        build: builds a metric. Called only if its file does not show the answer, since it may load a language model.
    """
    if WEIGHTED_SUM in scores and recipe.evaluate.weights:
        return True
    if not recipe.evaluate.metrics and any(score in recipe.active_losses for score in scores):
        return False
    unread = []
    for choice in recipe.evaluate.metrics:
        plugin = find("metric", choice.name, recipe.plugin_files)
        names, higher = class_texts(plugin, "names"), class_flag(plugin, "higher_is_better")
        gives = names is None or any(score in names for score in scores)
        if gives and names is not None and higher is not None:
            return higher
        if gives:
            unread.append(choice)
    for metric in map(build, unread):
        if any(score in metric.names for score in scores):
            return bool(metric.higher_is_better)
    return None
