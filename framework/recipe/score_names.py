"""Which metric gives a score, and which way is better, by what is written in the files of metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from framework.recipe.monitor import weight_problem
from framework.recipe.schema import WEIGHTED_SUM, Choice, Recipe
from framework.registry import Plugin, did_you_mean, find
from framework.registry.signature import class_flag, class_method, class_texts, keys_of


def not_of_one(score: str) -> str:
    """What is wrong with a score of many reports where one of a single report is wanted."""
    return (
        f"'{score}' is a score of many reports together: its metric has no per_exam_stats and compute, which tell what "
        "one report is worth; take it out"
    )


def metric_of(score: str, plugins: Mapping[tuple[str, str], Plugin], chosen: Sequence[str]) -> Plugin:
    """The metric that gives a score, by what metrics write out in `names`; of several, one of `chosen`.

    Args:
        plugins: all that the recipe may name.
        chosen: the recipe's own metrics, which it may set keys of.

    Raises:
        ValueError: no metric gives it, or one that must be told more.
    """
    metrics = [plugin for (kind, _), plugin in plugins.items() if kind == "metric"]
    metrics.sort(key=lambda plugin: (plugin.name not in chosen, plugin.name))
    known = {score: plugin for plugin in reversed(metrics) for score in class_texts(plugin, "names") or ()}
    if score not in known:
        raise ValueError(f"no metric gives '{score}'.{did_you_mean(score, known)} Known: {', '.join(sorted(known))}")
    found = known[score]
    required = [key.name for key in keys_of(found) if key.required]
    if required and found.name not in chosen:
        raise ValueError(
            f"metric '{found.name}' gives '{score}', and must be told {', '.join(required)}; "
            "add it to evaluate.metrics with its keys"
        )
    return found


def reward_problem(score: str, weight: float, metric: Plugin) -> str | None:
    """What is wrong with a score of a reward, as far as its metric's file tells; None if nothing."""
    higher = class_flag(metric, "higher_is_better")
    if higher is not None and (problem := weight_problem(score, weight, higher)):
        return problem
    return not_of_one(score) if class_method(metric, "per_exam_stats") is False else None


def higher_is_better(recipe: Recipe, scores: Sequence[str], build: Callable[[Choice], Any]) -> bool | None:
    """Whether more is better of a score, or of the weighted sum; None where no metric of the recipe gives it.

    Args:
        scores: names that it may have.
        build: makes a metric. Asked only where a file does not tell, since making one may load a language model.
    """
    if WEIGHTED_SUM in scores and recipe.evaluate.weights:
        return True
    untold = []
    for choice in recipe.evaluate.metrics:
        plugin = find("metric", choice.name, recipe.plugin_files)
        names, higher = class_texts(plugin, "names"), class_flag(plugin, "higher_is_better")
        gives = names is None or any(score in names for score in scores)
        if gives and names is not None and higher is not None:
            return higher
        if gives:
            untold.append(choice)
    for metric in map(build, untold):
        if any(score in metric.names for score in scores):
            return bool(metric.higher_is_better)
    return None
