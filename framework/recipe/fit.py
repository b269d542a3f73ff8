"""Whether the parts of a recipe fit: what each needs must be given by another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from framework.recipe.laterality import mirrors_by, tells_sides
from framework.recipe.source import Key
from framework.registry import Plugin, PluginError, catalogue
from framework.registry.signature import GIVERS, ITSELF, gives, needs

HOME: dict[str, Key] = {"encoder": ("model", "encoder"), "decoder": ("model", "decoder"), "distiller": ("distiller",)}


def note_misfits(
    plugins: Mapping[Key, Plugin],
    has_topics: bool,
    active_losses: set[str],
    files: tuple[Path, ...],
    note: Callable[[Key, str], None],
) -> None:
    """Notes where a decoder or a loss needs what no other part gives, and which part would give it.

    Args:
        plugins: those of the recipe that are known, by their place in it.
        active_losses: losses with a weight; the others are not built, and need nothing.
        note: takes a place and what is wrong there.
    """
    for key, plugin in plugins.items():
        if key[0] not in ("losses", "model") or (key[0] == "losses" and key[1] not in active_losses):
            continue
        try:
            needed = needs(plugin)
        except PluginError as error:
            note(key, str(error))
            continue
        for word in needed:
            kind = GIVERS[word]
            if word in ITSELF:
                continue
            if kind == "distiller":
                if not has_topics:
                    note(key, "needs topics, but distiller is none; choose a distiller, or set its weight to 0")
                continue
            giver = plugins.get(HOME[kind])
            if giver is None:
                continue  # missing or unknown, which was said
            try:
                if word in gives(giver):
                    continue
            except PluginError as error:
                note(HOME[kind], str(error))
                continue
            note(key, f"needs {word}, which {kind} '{giver.name}' does not give; {_would_fit(kind, word, files)}")


def note_mirrored_sides(
    plugins: Mapping[Key, Plugin], augment_keys: Mapping[str, Any], note: Callable[[Key, str], None]
) -> None:
    """Notes a mirroring augmentation beside a data set that says of itself that its reports name sides.

    Of other data sets it is known once a run reads the reports: see build.py.
    """
    augment, dataset = plugins.get(("data", "augment")), plugins.get(("data", "dataset"))
    if augment is None or dataset is None or not tells_sides(dataset):
        return
    if key := mirrors_by(augment, augment_keys):
        note(
            ("data", "augment", key),
            f"mirrors images, but reports of '{dataset.name}' name sides, and a mirrored left is a right; set it to 0",
        )


def _would_fit(kind: str, word: str, files: tuple[Path, ...]) -> str:
    fitting = []
    for (of_kind, name), plugin in sorted(catalogue(files).items()):
        try:
            if of_kind == kind and word in gives(plugin):
                fitting.append(f"'{name}'")
        except PluginError:
            continue  # said where it is named
    if not fitting:
        return f"no known {kind} gives it"
    return f"{kind} {' or '.join(fitting)} would fit"
