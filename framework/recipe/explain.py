"""Where the values of a recipe come from, and in what two recipes differ."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from framework.recipe.merge import GONE, slots, value_at
from framework.recipe.saved import keys_in, plain, result_tree, values
from framework.recipe.schema import CHOICES, Loss, Recipe, section_in
from framework.recipe.source import Key, RecipeError, dotted
from framework.registry import did_you_mean, find, short
from framework.registry.signature import RESERVED, keys_of

SCHEMA = "framework/recipe/schema.py"


@dataclass(frozen=True)
class Explained:
    """A value of a recipe, and every value its key had on the way, the one that counts last."""

    key: str
    value: Any
    chain: tuple[tuple[Any, str], ...]  # value, and "file:line:column", "override: ..." or "default of ..."


def explain(recipe: Recipe, key: str) -> list[Explained]:
    """A value by its dotted key, or every value of a block.

    Raises:
        RecipeError: the recipe has no such key.
    """
    tree = plain(recipe)
    at: Key = ()
    for part in _parts(tree, key):
        try:
            value_at(tree, (*at, part))
        except KeyError:
            guess = did_you_mean(key, keys_in(recipe))
            raise RecipeError(f"{short(recipe.path)}: it has no key '{key}'.{guess}") from None
        at = (*at, part)
    return [
        Explained(dotted(leaf), value, tuple(_chain(recipe, tree, leaf)))
        for leaf, value in values(value_at(tree, at), at)
    ]


def explain_rows(recipe: Recipe, key: str) -> list[tuple[str, str, str]]:
    """Key, value and origin of each value; below it, indented, what stood there before, the latest first."""
    rows = []
    for found in explain(recipe, key):
        *before, (_, origin) = found.chain
        rows.append((found.key, as_text(found.value), origin))
        rows += [("  before", as_text(value), origin) for value, origin in reversed(before)]
    return rows


def diff_rows(one: Recipe, two: Recipe) -> list[tuple[str, str, str, str, str]]:
    """Where two recipes differ once all is filled in: key, both values, where each was set; `-`: not there."""
    sides = [{found.key: found for key in plain(recipe) for found in explain(recipe, key)} for recipe in (one, two)]
    rows = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        found = [side.get(key) for side in sides]
        if found[0] and found[1] and found[0].value == found[1].value:
            continue
        texts = ["-" if item is None else as_text(item.value) for item in found]
        places = ["-" if item is None else item.chain[-1][1] for item in found]
        rows.append((key, texts[0], texts[1], places[0], places[1]))
    return rows


@dataclass(frozen=True)
class Difference:
    """A value that a recipe had and has; `-`: it had or has none."""

    key: str
    before: str
    now: str


def differences(before: dict[str, Any], recipe: Recipe) -> list[Difference]:
    """Where a recipe computes something else than one of which `result_tree` was kept."""
    then, now = ({dotted(key): as_text(value) for key, value in values(t)} for t in (before, result_tree(recipe)))
    rows = [Difference(key, then.get(key, "-"), now.get(key, "-")) for key in dict.fromkeys([*then, *now])]
    return [row for row in rows if row.before != row.now]


def as_text(value: Any) -> str:
    return repr(value) if value is GONE else json.dumps(value, ensure_ascii=False, default=str)


def _parts(tree: Any, key: str) -> list[str | int]:
    """`evaluate.metrics.0.name` with the number as a number."""
    parts: list[str | int] = []
    for part in key.split("."):
        try:
            in_list = isinstance(value_at(tree, tuple(parts)), list)
        except KeyError:
            in_list = False
        parts.append(int(part) if in_list and part.isdecimal() else part)
    return parts


def _chain(recipe: Recipe, tree: dict[str, Any], key: Key) -> list[tuple[Any, str]]:
    """What a key was set to by the default, by each file and by the overrides. A reference stands as it was written."""
    default = list(_default(recipe, tree, key))
    # A part of a list or of one big value was set with the whole of it.
    own = next((recipe.chains[key[:end]] for end in range(len(key), 0, -1) if key[:end] in recipe.chains), ())
    if own and own[-1][0] is GONE:
        return [*own, *default]
    return [*default, *own]


def _default(recipe: Recipe, tree: dict[str, Any], key: Key) -> Iterator[tuple[Any, str]]:
    """The default of a key, if it has one, and whose it is."""
    model: Any = Recipe
    for slot, kind, block in slots(tree):
        inside = key[len(slot) :]
        if block is None or key[: len(slot)] != slot or not inside:
            continue
        if inside[0] in RESERVED.get(kind, frozenset()) | {"name"}:
            model, key = (Loss, inside) if kind == "loss" else (Recipe, key)
            break
        plugin = find(kind, str(slot[-1]) if kind == "loss" else block["name"], recipe.plugin_files)
        for known in keys_of(plugin):
            if known.name == inside[0] and not known.required:
                yield known.default, f"default of {kind}/{plugin.name} ({plugin.where})"
        return
    with contextlib.suppress(KeyError):
        yield value_at(CHOICES, key), f"default of {SCHEMA}"
        return
    for part in key:
        words = {} if model is None else model.words()
        if part not in words:
            return
        field = model.model_fields[words[part]]
        model = section_in(field.annotation)
    if not field.is_required():
        yield field.get_default(call_default_factory=True), f"default of {SCHEMA}"
