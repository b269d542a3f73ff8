"""Puts the layers of a recipe on one another: bases, file, overrides; and remembers where each value came from."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framework.recipe.schema import CHOICES, SLOTS
from framework.recipe.source import REFERENCE, Key, Layer, dotted, forget, nested
from framework.registry import did_you_mean, short
from framework.registry.signature import RESERVED

MOST_CHARACTERS = 10_000
REPLACE = "_delete_"  # `_delete_: true` in a block: nothing of the block below is kept


class Gone:
    """Stands in a chain of values where a layer took the value out."""

    def __repr__(self) -> str:
        return "(removed)"


GONE = Gone()


@dataclass
class Merged:
    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    chains: dict[Key, list[tuple[Any, str]]] = field(default_factory=dict)  # every value a key had, and its origin
    notices: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
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


def merge(layers: Sequence[Layer]) -> Merged:
    """All layers on one another, first the lowest.

    Mappings are merged key by key; everything else, lists too, is replaced. A layer that changes the name of a plugin
    drops the keys of the one before, with a notice: they are not its own. `losses: {topic: null}` takes a loss out.
    """
    merged = Merged(tree=deepcopy(CHOICES))
    for layer in layers:
        if layer.plugin_files:
            _take_in(merged, layer.plugin_files, layer.origins[("plugins",)])
        for key, where in layer.removals:
            _remove(merged, key, where)
        write_names_out(layer.tree)
        for key, kind, block in slots(layer.tree):
            _drop_keys(merged, key, kind, block, layer)
        _put(merged, layer)
        for key, value, where in layer.additions:
            _add(merged, key, value, where)
    losses = merged.tree.get("losses")
    if isinstance(losses, dict):
        merged.tree["losses"] = {name: block for name, block in losses.items() if block is not None}
    return merged


def leaves(tree: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value that is no mapping or list with something in it, and where it stands."""
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())
    if not items:
        yield key, tree
    for name, value in items:
        yield from leaves(value, (*key, name))


def _put(merged: Merged, layer: Layer) -> None:
    def where(key: Key) -> str:
        return next(layer.origins[key[:end]] for end in range(len(key), 0, -1) if key[:end] in layer.origins)

    def put(old: dict[str, Any], new: dict[str, Any], key: Key) -> None:
        for name, value in new.items():
            here = (*key, name)
            if isinstance(value, dict):
                if REPLACE in value:
                    _take_out(merged, here, value[REPLACE], where((*here, REPLACE)))
                if isinstance(old.get(name), list) and value and all(str(part).isdecimal() for part in value):
                    whole = dotted(here)
                    merged.problems.append(
                        f"{where((*here, next(iter(value))))}: {whole}: a list is replaced whole, {whole}=[a, b]; "
                        f"+{whole}=c adds an item, ~{whole}.c takes one out"
                    )
                    continue
                if not isinstance(old.get(name), dict):
                    if name in old:  # a plain value, which says nothing of what is in the block
                        _end(merged, here, where((*here, *list(value)[:1])))
                    forget(merged.origins, here)
                    old[name] = {}
                put(old[name], {inner: item for inner, item in value.items() if inner != REPLACE}, here)
                if not value:
                    merged.chains.setdefault(here, []).append(({}, where(here)))
            else:
                if isinstance(old.get(name), dict):
                    _end(merged, here, where(here))
                forget(merged.origins, here)
                old[name] = deepcopy(value)
                merged.chains.setdefault(here, []).append((deepcopy(value), where(here)))

    put(merged.tree, layer.tree, ())
    merged.origins.update({key: place for key, place in layer.origins.items() if key[-1] != REPLACE})


def _take_in(merged: Merged, files: tuple[Path, ...], where: str) -> None:
    """Plugin files add up over the layers."""
    for file in files:
        if not file.is_file():
            near = did_you_mean(file.name, [p.name for p in file.parent.glob("*.py")])
            merged.problems.append(f"{where}: plugins: no such file: {short(file)}.{near}")
    merged.plugin_files = tuple(dict.fromkeys([*merged.plugin_files, *files]))
    merged.chains.setdefault(("plugins",), []).append(([str(file) for file in merged.plugin_files], where))


def _take_out(merged: Merged, key: Key, said: Any, where: str) -> None:
    """`_delete_: true`: nothing is kept of the block below. Notes what is wrong with saying so."""
    at = f"{where}: {dotted((*key, REPLACE))}"
    if said is not True:
        merged.problems.append(
            f"{at}: found {json.dumps(said)}, expected true; leave it out to merge with the block below"
        )
        return
    try:
        below = value_at(merged.tree, key[:-1])
        del below[key[-1]]
    except KeyError:
        merged.problems.append(f"{at}: there is no block below that it could replace; take it out")
        return
    _end(merged, key, where)


def _end(merged: Merged, key: Key, where: str) -> None:
    """Notes in the chains that a value, and all that was in it, is taken out."""
    for leaf, chain in merged.chains.items():
        if leaf[: len(key)] == key and chain[-1][0] is not GONE:
            chain.append((GONE, where))
    forget(merged.origins, key)


def _remove(merged: Merged, key: Key, where: str) -> None:
    """`~key`: takes a value out, which brings its default back; or an item of a list, by number or plugin's name."""
    try:
        parent = value_at(merged.tree, key[:-1])
        last = _index(parent, str(key[-1])) if isinstance(parent, list) else key[-1]
        value_at(parent, (last,))
    except KeyError:
        known = dict.fromkeys(dotted(leaf[:end]) for leaf, _ in leaves(merged.tree) for end in range(1, len(leaf) + 1))
        guess = did_you_mean(dotted(key), known)
        merged.problems.append(f"{where}: nothing sets {dotted(key)}, so there is nothing to take out.{guess}")
        return
    del parent[last]
    if isinstance(parent, list):
        forget(merged.origins, key[:-1])
        merged.origins[key[:-1]] = where
        merged.chains.setdefault(key[:-1], []).append((deepcopy(parent), where))
        return
    _end(merged, key, where)
    with contextlib.suppress(KeyError):
        parent[last] = deepcopy(value_at(CHOICES, key))


def _index(items: list[Any], named: str) -> int:
    """The item of a list by its number, or of plugins by its name. Raises KeyError."""
    for number, item in enumerate(items):
        if named in (str(number), item.get("name") if isinstance(item, dict) else item):
            return number
    raise KeyError(named)


def _add(merged: Merged, key: Key, value: Any, where: str) -> None:
    """`+key=value`: one more item of a list, or a key that nothing sets yet."""
    try:
        there = value_at(merged.tree, key)
    except KeyError:
        tree = nested(key, value)
        write_names_out(tree)
        _put(merged, Layer(tree, {key: where}))
        return
    if isinstance(there, list):
        item: Key = (*key, len(there))
        merged.origins[item] = where
        there.append(deepcopy(value))
        write_names_out(merged.tree)
        merged.chains.setdefault(key, []).append((deepcopy(there), where))
        return
    before = origin(merged, key, "a default choice")
    merged.problems.append(f"{where}: {dotted(key)} is set already ({before}); leave the + out to change it")


def _drop_keys(merged: Merged, key: Key, kind: str, block: Any, layer: Layer) -> None:
    try:
        old = value_at(merged.tree, key)
    except KeyError:
        return
    if not (isinstance(block, dict) and isinstance(old, dict) and "name" in block and "name" in old):
        return
    if block["name"] == old["name"] or REPLACE in block:
        return
    where = layer.origins.get((*key, "name"), layer.origins.get(key, ""))
    stale = [name for name in old if name not in RESERVED.get(kind, frozenset()) | {"name"}]
    for name in stale:
        del old[name]
        _end(merged, (*key, name), where)
    lost = [name for name in stale if name not in block]
    if lost:
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


def resolve(merged: Merged) -> list[tuple[Key, str]]:
    """Fills in every `${a.b}` in place. Gives what is wrong.

    A reference names one plain value. They are filled in from those that need nothing else upwards, each result bounded
    in size, so that no recipe can blow up by doubling a text.
    """
    problems: list[tuple[Key, str]] = []
    waiting = {key: value for key, value in leaves(merged.tree) if isinstance(value, str) and "${" in value}
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
