"""Which metric gives a score, by what is written in the files of metrics: nothing is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from framework.registry import Plugin, did_you_mean
from framework.signature import class_texts, keys_of


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
