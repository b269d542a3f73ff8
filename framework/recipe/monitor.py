"""Checks `evaluate.monitor`: its scores exist, and their weights have the right sign."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from framework.recipe.schema import Recipe
from framework.recipe.source import Found, Key
from framework.registry import Plugin, catalogue, did_you_mean, find
from framework.registry.signature import class_flag, class_texts
from framework.runtime.errors import Problem

EXAMPLE = "{val/bleu_4: 1, val/cider: 0.5}"


def monitor_problems(recipe: Recipe, plugins: Mapping[Key, Plugin]) -> Iterator[Found]:
    """The problems of `evaluate.monitor`.

    Args:
        plugins: the known plugins of the recipe, by key.
    """
    key, monitor = ("evaluate", "monitor"), recipe.evaluate.monitor
    terms = () if recipe.evaluate.metrics else tuple(recipe.active_losses)
    if monitor == {}:
        expected = f"val/<score>, or several with their weights: {EXAMPLE}"
        yield key, Problem("missing-key", "found {}", expected=expected)
    metric_of: dict[str, Plugin] = {}
    at_run_time = False  # a metric is unknown, which is reported already, or names its scores when it is built
    for index in range(len(recipe.evaluate.metrics)):
        plugin = plugins.get(("evaluate", "metrics", index))
        names = class_texts(plugin, "names") if plugin else None
        at_run_time |= names is None
        metric_of |= {name: plugin for name in names or () if plugin}
    places = {(*key, name): name for name in monitor} if isinstance(monitor, dict) else {key: monitor}
    for place, name in places.items():
        split, _, score = name.partition("/")
        if split != "val" or not score:
            expected = "val/<score>: the best checkpoint is chosen on val alone"
            yield place, Problem("wrong-format", f"found {name!r}", expected=expected)
        elif score not in metric_of and score not in terms:
            if not at_run_time:
                yield place, _unknown(score, [*metric_of, *terms], recipe)
        elif isinstance(monitor, dict):
            higher = class_flag(metric_of[score], "higher_is_better") if score in metric_of else False
            problem = None if higher is None else weight_problem(score, monitor[name], higher)
            if problem:
                yield place, problem


def _unknown(score: str, known: list[str], recipe: Recipe) -> Problem:
    others = [p.name for (kind, _), p in catalogue(recipe.plugin_files).items() if kind == "metric"]
    home = [n for n in others if score in (class_texts(find("metric", n, recipe.plugin_files), "names") or ())]
    advice = f"Add metric '{home[0]}' to evaluate.metrics." if home else did_you_mean(score, known)
    hint = f"{advice} Known: {', '.join('val/' + n for n in known)}".strip()
    giver = "metric" if recipe.evaluate.metrics else "loss"
    return Problem("unknown-name", f"no {giver} of the recipe gives '{score}'", hint=hint)


def weight_problem(score: str, weight: float, higher_is_better: bool) -> Problem | None:
    """The problem of a score's weight in a sum that is maximized, if it has one."""
    if weight == 0:
        return Problem("ignored-setting", f"the weight of '{score}' is 0", hint="Delete it.")
    if (weight > 0) == higher_is_better:
        return None
    better, sign = ("higher", "above") if higher_is_better else ("lower", "below")
    expected = f"a number {sign} 0, since {better} is better and the sum is maximized"
    return Problem("out-of-range", f"the weight of '{score}' is {weight:g}", expected=expected)
