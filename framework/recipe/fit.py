"""Checks that the parts of a recipe fit: what a part needs, another part provides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from framework.recipe.laterality import declares_sides, mirrors_by
from framework.recipe.source import Found, Key
from framework.registry import Plugin, PluginError, catalogue
from framework.registry.signature import GIVERS, ITSELF, MADE_OF, gives, needs
from framework.runtime.errors import Problem

HOME: dict[str, Key] = {"encoder": ("model", "encoder"), "decoder": ("model", "decoder"), "distiller": ("distiller",)}


def misfits(
    plugins: Mapping[Key, Plugin], has_topics: bool, active_losses: set[str], files: tuple[Path, ...]
) -> Iterator[Found]:
    """Yields where a decoder or loss needs what no other part provides, with the plugins that would provide it.

    Args:
        plugins: the known plugins of the recipe, by key.
        active_losses: losses with a weight; the others are not built and need nothing.
        files: the recipe's plugin files.
    """
    for key, plugin in plugins.items():
        if key[0] not in ("losses", "model") or (key[0] == "losses" and key[1] not in active_losses):
            continue
        try:
            needed = needs(plugin)
        except PluginError as error:
            yield from ((key, problem) for problem in error.problems)
            continue
        for name in (MADE_OF.get(name, name) for name in needed):
            kind = GIVERS[name]
            if name in ITSELF:
                continue
            if kind == "distiller":
                if not has_topics:
                    hint = "Choose a distiller, or set its weight to 0."
                    yield key, Problem("missing-input", "needs topics, but distiller is none", hint=hint)
                continue
            giver = plugins.get(HOME[kind])
            if giver is None:
                continue  # missing or unknown, which is reported already
            try:
                if name in gives(giver):
                    continue
            except PluginError as error:
                yield from ((HOME[kind], problem) for problem in error.problems)
                continue
            found = f"needs {name}, which {kind} '{giver.name}' does not give"
            yield key, Problem("missing-input", found, hint=_fitting(kind, name, files))


def mirrored_sides_problems(plugins: Mapping[Key, Plugin], augment_keys: Mapping[str, Any]) -> Iterator[Found]:
    """Yields if images are mirrored and the data set's class declares that its reports name sides.

    Other data sets are checked when a run reads their reports, in build.py.
    """
    augment, dataset = plugins.get(("data", "augment")), plugins.get(("data", "dataset"))
    if augment is None or dataset is None or not declares_sides(dataset):
        return
    if key := mirrors_by(augment, augment_keys):
        found = f"mirrors images, but reports of '{dataset.name}' name sides, and a mirrored left is a right"
        yield ("data", "augment", key), Problem("mirrored-sides", found, hint="Set it to 0.")


def _fitting(kind: str, needed: str, files: tuple[Path, ...]) -> str:
    fitting = []
    for (of_kind, name), plugin in sorted(catalogue(files).items()):
        try:
            if of_kind == kind and needed in gives(plugin):
                fitting.append(f"'{name}'")
        except PluginError:
            continue  # reported if the recipe names it
    return f"Choose {kind} {' or '.join(fitting)}." if fitting else f"No known {kind} gives it."
