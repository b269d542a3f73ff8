"""Puts the layers of a recipe on one another: bases, file, overrides; and remembers where each value came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framework.recipe.schema import CHOICES, SLOTS
from framework.recipe.source import REFERENCE, Key, Layer, RecipeError, dotted, parse, read_node
from framework.signature import RESERVED

MOST_CHARACTERS = 10_000


@dataclass
class Merged:
    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    plugin_files: tuple[Path, ...] = ()


def value_at(tree: Any, key: Key) -> Any:
    """The value under a key. Raises KeyError where there is none."""
    for part in key:
        known = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
        if part not in known:
            raise KeyError(key)
        tree = tree[part]
    return tree


def slots(tree: dict[str, Any]) -> Iterator[tuple[Key, str, Any]]:
    """Where a plugin stands in a tree: key, kind, and what stands there."""
    for pattern, kind in SLOTS.items():
        parent: Key = pattern[:-1]
        try:
            block = value_at(tree, parent)
        except KeyError:
            continue
        if pattern[-1] != "*":
            if isinstance(block, dict) and pattern[-1] in block:
                yield pattern, kind, block[pattern[-1]]
        elif isinstance(block, dict) and kind == "loss":
            yield from (((*parent, name), kind, value) for name, value in list(block.items()))
        elif isinstance(block, list) and kind == "metric":
            yield from (((*parent, index), kind, value) for index, value in enumerate(block))


def write_names_out(tree: dict[str, Any]) -> None:
    """`distiller: lda` is short for `distiller: {name: lda}`."""
    for key, kind, value in slots(tree):
        if kind != "loss" and isinstance(value, str) and "${" not in value:
            value_at(tree, key[:-1])[key[-1]] = {"name": value}


def override_layer(overrides: Sequence[str]) -> Layer:
    """All `key=value` words as one layer, the last one winning. A value is read as in a recipe file."""
    layer, problems = Layer(), []
    for text in overrides:
        name, equals, value = text.partition("=")
        key: Key = tuple(name.strip().split("."))
        if not equals or not all(key):
            problems.append(f"override: {text}: expected key=value, such as train.epochs=3")
            continue
        if key[0] == "_base_":
            problems.append(f"override: {text}: _base_ stands in a file; name another recipe instead")
            continue
        origins: dict[Key, str] = {}
        found: list[str] = []
        try:
            node = parse(value, "value")
            plain = None if node is None else read_node(node, key, "value", origins, found)
        except RecipeError as error:
            found += error.lines
            plain = None
        problems += [f"override: {text}: {problem}" for problem in found]
        tree: Any = plain
        for part in reversed(key):
            tree = {part: tree}
        one = Layer(tree, dict.fromkeys([*origins, key], f"override: {text}"))
        if key == ("plugins",):
            files = [plain] if isinstance(plain, str) else plain
            if not isinstance(files, list) or not all(isinstance(item, str) and item for item in files):
                problems.append(f"override: {text}: expected a path or a list of paths")
                continue
            layer.plugin_files = tuple(Path(item).resolve() for item in files)
        else:
            _put(layer, one)
    if problems:
        raise RecipeError(*problems)
    return layer


def _put(below: Layer | Merged, above: Layer) -> None:
    """Mappings are merged key by key; everything else, lists too, is replaced."""

    def merge(old: dict[str, Any], new: dict[str, Any], key: Key) -> None:
        for name, value in new.items():
            here = (*key, name)
            if isinstance(value, dict) and isinstance(old.get(name), dict):
                merge(old[name], value, here)
            else:
                for stale in [k for k in below.origins if k[: len(here)] == here]:
                    del below.origins[stale]
                old[name] = deepcopy(value)

    write_names_out(above.tree)
    merge(below.tree, above.tree, ())
    below.origins.update(above.origins)


def merge(layers: Sequence[Layer]) -> Merged:
    """All layers on one another, first the lowest.

    A layer that changes the name of a plugin drops the keys of the one before, with a notice: they are not its own.
    `losses: {topic: null}` takes a loss out.
    """
    merged = Merged(tree=deepcopy(CHOICES))
    for layer in layers:
        write_names_out(layer.tree)
        for key, kind, block in slots(layer.tree):
            _drop_keys(merged, key, kind, block, layer)
        _put(merged, layer)
        merged.plugin_files += tuple(p for p in layer.plugin_files if p not in merged.plugin_files)
    losses = merged.tree.get("losses")
    if isinstance(losses, dict):
        merged.tree["losses"] = {name: block for name, block in losses.items() if block is not None}
    return merged


def _drop_keys(merged: Merged, key: Key, kind: str, block: Any, layer: Layer) -> None:
    try:
        old = value_at(merged.tree, key)
    except KeyError:
        return
    if not (isinstance(block, dict) and isinstance(old, dict) and "name" in block and "name" in old):
        return
    if block["name"] == old["name"]:
        return
    stale = [name for name in old if name not in RESERVED.get(kind, frozenset()) | {"name"}]
    for name in stale:
        del old[name]
        for gone in [k for k in merged.origins if k[: len(key) + 1] == (*key, name)]:
            del merged.origins[gone]
    lost = [name for name in stale if name not in block]
    if lost:
        where = layer.origins.get((*key, "name"), layer.origins.get(key, ""))
        merged.notices.append(
            f"{where}: {dotted(key)}: {block['name']} in place of {old['name']}, whose keys were dropped: "
            f"{', '.join(lost)}"
        )


def origin(merged: Merged, key: Key, otherwise: str) -> str:
    """Where a value was written, or else something in it, or the block around it."""
    inside = [place for place in merged.origins if place[: len(key)] == key]
    if key and inside and key not in merged.origins:
        return merged.origins[inside[0]]
    for end in range(len(key), 0, -1):
        if key[:end] in merged.origins:
            return merged.origins[key[:end]]
    return otherwise


def _leaves(tree: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        yield key, tree
    else:
        for name, value in items:
            yield from _leaves(value, (*key, name))


def resolve(merged: Merged) -> list[tuple[Key, str]]:
    """Fills in every `${a.b}` in place. Gives what is wrong.

    A reference names one plain value. They are filled in from those that need nothing else upwards, each result bounded
    in size, so that no recipe can blow up by doubling a text.
    """
    problems: list[tuple[Key, str]] = []
    waiting = {key: value for key, value in _leaves(merged.tree) if isinstance(value, str) and "${" in value}
    if not waiting:
        return problems
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    while waiting and not problems:  # what refers to a mistake is not followed further
        pending = {dotted(key) for key in waiting}
        ready = [key for key, text in waiting.items() if not pending & set(REFERENCE.findall(text))]
        if not ready:
            problems += [(key, f"found {text!r}, which leads back to itself") for key, text in waiting.items()]
            return problems
        config = OmegaConf.create(merged.tree)
        for key in ready:
            text = waiting.pop(key)
            try:
                value: Any = config
                for part in key:
                    value = value[part]
            except OmegaConfBaseException:
                names = ", ".join(REFERENCE.findall(text))
                problems.append(
                    (key, f"found {text!r}, but the recipe does not set {names} (a default does not count)")
                )
                continue
            if OmegaConf.is_config(value):
                problems.append((key, f"found {text!r}, which is a whole block; name a single value"))
            elif isinstance(value, str) and len(value) > MOST_CHARACTERS:
                problems.append((key, f"found {text!r}, which grows beyond {MOST_CHARACTERS} characters"))
            else:
                value_at(merged.tree, key[:-1])[key[-1]] = value
    write_names_out(merged.tree)
    return problems
