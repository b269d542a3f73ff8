"""Where the values of a recipe come from, and how two recipes differ."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from framework.recipe.merge import REMOVED, slots, value_at
from framework.recipe.saved import keys_in, plain, result_tree, values
from framework.recipe.schema import CHOICES, Loss, Recipe, section_in
from framework.recipe.source import Key, RecipeError, dotted, renamed_key
from framework.registry import did_you_mean, find, short
from framework.registry.signature import RESERVED, keys_of
from framework.runtime.errors import Problem

SCHEMA = "framework/recipe/schema.py"


@dataclass(frozen=True)
class Explained:
    """A value of a recipe with every value that its key had, the effective one last."""

    key: str
    value: Any
    chain: tuple[tuple[Any, str], ...]  # value and origin: "file:line:column", "override: ..." or "default of ..."


def explain(recipe: Recipe, key: str) -> list[Explained]:
    """The value of a dotted key, or all values of a block.

    Raises:
        RecipeError: the recipe has no such key.
    """
    tree = plain(recipe)
    at: Key = ()
    for part in _parts(tree, key):
        try:
            value_at(tree, (*at, part))
        except KeyError:
            hint = did_you_mean(key, keys_in(recipe)).strip()
            unknown = Problem("unknown-key", f"the recipe has no key '{key}'", hint=hint)
            raise RecipeError.of([(renamed_key((key,)) or unknown).at(short(recipe.path))]) from None
        at = (*at, part)
    return [
        Explained(dotted(leaf), value, tuple(_chain(recipe, tree, leaf)))
        for leaf, value in values(value_at(tree, at), at)
    ]


def explain_rows(recipe: Recipe, key: str) -> list[tuple[str, str, str]]:
    """Key, value and origin of each value, followed by its earlier values, newest first."""
    rows = []
    for item in explain(recipe, key):
        *before, (_, origin) = item.chain
        rows.append((item.key, as_text(item.value), origin))
        rows += [("  before", as_text(value), origin) for value, origin in reversed(before)]
    return rows


def diff_rows(one: Recipe, two: Recipe) -> list[tuple[str, str, str, str, str]]:
    """Where two recipes differ, defaults included: key, both values, and both origins; `-` for a missing value."""
    sides = [{item.key: item for key in plain(recipe) for item in explain(recipe, key)} for recipe in (one, two)]
    rows = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        items = [side.get(key) for side in sides]
        if items[0] and items[1] and items[0].value == items[1].value:
            continue
        texts = ["-" if item is None else as_text(item.value) for item in items]
        origins = ["-" if item is None else item.chain[-1][1] for item in items]
        rows.append((key, texts[0], texts[1], origins[0], origins[1]))
    return rows


@dataclass(frozen=True)
class Difference:
    """The old and new value of a key; `-` for none."""

    key: str
    before: str
    now: str


def differences(before: dict[str, Any], recipe: Recipe) -> list[Difference]:
    """Where the results of a recipe may differ from those of an earlier one, given by its `result_tree`."""
    old, new = ({dotted(key): as_text(value) for key, value in values(t)} for t in (before, result_tree(recipe)))
    rows = [Difference(key, old.get(key, "-"), new.get(key, "-")) for key in dict.fromkeys([*old, *new])]
    return [row for row in rows if row.before != row.now]


def as_text(value: Any) -> str:
    return repr(value) if value is REMOVED else json.dumps(value, ensure_ascii=False, default=str)


def _parts(tree: Any, key: str) -> list[str | int]:
    """`evaluate.metrics.0.name` with the index as an int."""
    parts: list[str | int] = []
    for part in key.split("."):
        try:
            in_list = isinstance(value_at(tree, tuple(parts)), list)
        except KeyError:
            in_list = False
        parts.append(int(part) if in_list and part.isdecimal() else part)
    return parts


def _chain(recipe: Recipe, tree: dict[str, Any], key: Key) -> list[tuple[Any, str]]:
    """The values of a key from its default, the files and the overrides. References are not resolved."""
    default = list(_default(recipe, tree, key))
    # A part of a list was set together with the list.
    set_values = next((recipe.chains[key[:end]] for end in range(len(key), 0, -1) if key[:end] in recipe.chains), ())
    if set_values and set_values[-1][0] is REMOVED:
        return [*set_values, *default]
    return [*default, *set_values]


def _default(recipe: Recipe, tree: dict[str, Any], key: Key) -> Iterator[tuple[Any, str]]:
    """The default of a key, if it has one, and where it is defined."""
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
        names = {} if model is None else model.field_names()
        if part not in names:
            return
        field = model.model_fields[names[part]]
        model = section_in(field.annotation)
    if not field.is_required():
        yield field.get_default(call_default_factory=True), f"default of {SCHEMA}"
