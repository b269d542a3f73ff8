"""Whether the scores that choose the kept model are there, and weighed the right way round."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from framework.recipe.schema import Recipe
from framework.recipe.source import Key
from framework.registry import Plugin, catalogue, did_you_mean, find
from framework.registry.signature import class_flag, class_texts

EXAMPLE = "{val/bleu_4: 1, val/cider: 0.5}"


def note_monitor(recipe: Recipe, plugins: Mapping[Key, Plugin], note: Callable[[Key, str], None]) -> None:
    """Notes what is wrong with `evaluate.monitor`.

    Args:
        plugins: those of the recipe that are known, by their place in it.
        note: takes a place and what is wrong there.
    """
    key, monitor = ("evaluate", "monitor"), recipe.evaluate.monitor
    if monitor == {}:
        note(key, f"found {{}}, expected val/<score>, or several with their weights: {EXAMPLE}")
    of_metric: dict[str, Plugin] = {}
    at_run_time = False  # whether a metric is unknown, which was said, or names its scores when it is built
    for index in range(len(recipe.evaluate.metrics)):
        plugin = plugins.get(("evaluate", "metrics", index))
        names = class_texts(plugin, "names") if plugin else None
        at_run_time |= names is None
        of_metric |= {name: plugin for name in names or () if plugin}
    places = {(*key, name): name for name in monitor} if isinstance(monitor, dict) else {key: monitor}
    for place, name in places.items():
        split, _, score = name.partition("/")
        if split != "val" or not score:
            note(place, f"found {name!r}, expected val/<score>: the best checkpoint is chosen on val alone")
        elif score not in of_metric:
            if not at_run_time:
                note(place, _unknown(score, list(of_metric), recipe))
        elif isinstance(monitor, dict):
            higher = class_flag(of_metric[score], "higher_is_better")
            problem = None if higher is None else weight_problem(score, monitor[name], higher)
            if problem:
                note(place, problem)


def _unknown(score: str, known: list[str], recipe: Recipe) -> str:
    others = [p.name for (kind, _), p in catalogue(recipe.plugin_files).items() if kind == "metric"]
    home = [n for n in others if score in (class_texts(find("metric", n, recipe.plugin_files), "names") or ())]
    advice = f" Metric '{home[0]}' gives it: add it to evaluate.metrics." if home else did_you_mean(score, known)
    return f"no chosen metric gives '{score}'.{advice} Known: {', '.join('val/' + n for n in known)}"


def weight_problem(score: str, weight: float, higher_is_better: bool) -> str | None:
    """What is wrong with the weight of a score in a sum of which the largest is best; None if it is right."""
    if weight == 0:
        return f"the weight of '{score}' is 0, so that it counts nothing; take it out"
    if (weight > 0) == higher_is_better:
        return None
    better, sign = ("higher", "above") if higher_is_better else ("lower", "below")
    return (
        f"the weight of '{score}' is {weight:g}, expected a number {sign} 0: of it {better} is better, and of "
        "the sum higher is better"
    )
