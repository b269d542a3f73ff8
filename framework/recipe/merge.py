"""Merges the layers of a recipe (bases, file, overrides) and records where each value came from."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framework.recipe.schema import CHOICES, SLOTS
from framework.recipe.source import REFERENCE, Found, Key, Layer, dotted, forget, nested, renamed_key
from framework.registry import did_you_mean, short
from framework.registry.signature import RESERVED
from framework.runtime.errors import Problem

MAX_CHARACTERS = 10_000
HOME = re.compile(r"~[\w.-]*/")
REPLACE = "_delete_"  # `_delete_: true` in a block replaces the block of the base instead of merging with it


class Removed:
    """Marks in a chain of values that a layer removed the value."""

    def __repr__(self) -> str:
        return "(removed)"


REMOVED = Removed()


@dataclass
class Merged:
    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    chains: dict[Key, list[tuple[Any, str]]] = field(default_factory=dict)  # every value of a key, and its origin
    notices: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    plugin_files: tuple[Path, ...] = ()


def value_at(tree: Any, key: Key) -> Any:
    """The value under a key. Raises KeyError if there is none."""
    for part in key:
        known = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
        if part not in known:
            raise KeyError(key)
        tree = tree[part]
    return tree


def slots(tree: dict[str, Any]) -> Iterator[tuple[Key, str, Any]]:
    """The places of plugins in a tree: key, kind, and block."""
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


def expand_names(tree: dict[str, Any]) -> None:
    """Expands `distiller: lda` to `distiller: {name: lda}`."""
    for key, kind, value in slots(tree):
        if kind != "loss" and isinstance(value, str) and "${" not in value:
            value_at(tree, key[:-1])[key[-1]] = {"name": value}


def merge(layers: Sequence[Layer]) -> Merged:
    """Merges layers, lowest first.

    Mappings are merged key by key; everything else is replaced, including lists. A layer that names another plugin
    drops the keys of the plugin before, with a notice. `losses: {topic: null}` removes a loss.
    """
    merged = Merged(tree=deepcopy(CHOICES))
    for layer in layers:
        if layer.plugin_files:
            _add_plugin_files(merged, layer.plugin_files, layer.origins[("plugins",)])
        for key, where in layer.removals:
            _remove(merged, key, where)
        expand_names(layer.tree)
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
    """Every value except non-empty mappings and lists, with its key."""
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
                    _replace_block(merged, here, value[REPLACE], where((*here, REPLACE)))
                if isinstance(old.get(name), list) and value and all(str(part).isdecimal() for part in value):
                    name_of_list = dotted(here)
                    merged.problems.append(
                        Problem(
                            "unsupported", "an item of a list cannot be set",
                            f"{where((*here, next(iter(value))))}: {name_of_list}", f"{name_of_list}=[a, b]",
                            f"+{name_of_list}=c adds an item, ~{name_of_list}.c removes one.",
                        )
                    )  # fmt: skip
                    continue
                if not isinstance(old.get(name), dict):
                    if name in old:  # a plain value, not the block
                        _record_removal(merged, here, where((*here, *list(value)[:1])))
                    forget(merged.origins, here)
                    old[name] = {}
                put(old[name], {inner: item for inner, item in value.items() if inner != REPLACE}, here)
                if not value:
                    merged.chains.setdefault(here, []).append(({}, where(here)))
            else:
                if isinstance(old.get(name), dict):
                    _record_removal(merged, here, where(here))
                forget(merged.origins, here)
                old[name] = deepcopy(value)
                merged.chains.setdefault(here, []).append((deepcopy(value), where(here)))

    put(merged.tree, layer.tree, ())
    merged.origins.update({key: place for key, place in layer.origins.items() if key[-1] != REPLACE})


def _add_plugin_files(merged: Merged, files: tuple[Path, ...], where: str) -> None:
    """Adds plugin files to those of the layers below."""
    for file in files:
        if not file.is_file():
            hint = did_you_mean(file.name, [p.name for p in file.parent.glob("*.py")]).strip()
            problem = Problem("no-such-file", f"no such file: {short(file)}", f"{where}: plugins", hint=hint)
            merged.problems.append(problem)
    merged.plugin_files = tuple(dict.fromkeys([*merged.plugin_files, *files]))
    merged.chains.setdefault(("plugins",), []).append(([str(file) for file in merged.plugin_files], where))


def _replace_block(merged: Merged, key: Key, flag: Any, where: str) -> None:
    """Applies `_delete_: true`: removes the block of the layers below."""
    at = f"{where}: {dotted((*key, REPLACE))}"
    if flag is not True:
        hint = "Delete the line to merge with the block of the base."
        merged.problems.append(Problem("wrong-type", f"found {json.dumps(flag)}", at, "true", hint))
        return
    try:
        below = value_at(merged.tree, key[:-1])
        del below[key[-1]]
    except KeyError:
        merged.problems.append(Problem("ignored-setting", "the base has no block to replace", at, hint="Delete it."))
        return
    _record_removal(merged, key, where)


def _record_removal(merged: Merged, key: Key, where: str) -> None:
    """Records in the chains that a value and everything in it is removed."""
    for leaf, chain in merged.chains.items():
        if leaf[: len(key)] == key and chain[-1][0] is not REMOVED:
            chain.append((REMOVED, where))
    forget(merged.origins, key)


def _remove(merged: Merged, key: Key, where: str) -> None:
    """Applies `~key`: removes a value, so that its default holds, or an item of a list by index or plugin name."""
    try:
        parent = value_at(merged.tree, key[:-1])
        last = _index(parent, str(key[-1])) if isinstance(parent, list) else key[-1]
        value_at(parent, (last,))
    except KeyError:
        known = dict.fromkeys(dotted(leaf[:end]) for leaf, _ in leaves(merged.tree) for end in range(1, len(leaf) + 1))
        problem = Problem(
            "unknown-key", f"the recipe does not set {dotted(key)}", hint=did_you_mean(dotted(key), known).strip()
        )
        merged.problems.append((renamed_key(key) or problem).at(where))
        return
    del parent[last]
    if isinstance(parent, list):
        forget(merged.origins, key[:-1])
        merged.origins[key[:-1]] = where
        merged.chains.setdefault(key[:-1], []).append((deepcopy(parent), where))
        return
    _record_removal(merged, key, where)
    with contextlib.suppress(KeyError):
        parent[last] = deepcopy(value_at(CHOICES, key))


def _index(items: list[Any], named: str) -> int:
    """The index of an item by its index or its plugin's name. Raises KeyError."""
    for number, item in enumerate(items):
        if named in (str(number), item.get("name") if isinstance(item, dict) else item):
            return number
    raise KeyError(named)


def _add(merged: Merged, key: Key, value: Any, where: str) -> None:
    """Applies `+key=value`: appends to a list, or sets a key that the recipe does not set."""
    try:
        there = value_at(merged.tree, key)
    except KeyError:
        tree = nested(key, value)
        expand_names(tree)
        _put(merged, Layer(tree, {key: where}))
        return
    if isinstance(there, list):
        item: Key = (*key, len(there))
        merged.origins[item] = where
        there.append(deepcopy(value))
        expand_names(merged.tree)
        merged.chains.setdefault(key, []).append((deepcopy(there), where))
        return
    before = origin(merged, key, "a default choice")
    set_already = f"{dotted(key)} is set already ({before})"
    merged.problems.append(Problem("conflicting-settings", set_already, where, hint="Remove the + to change it."))


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
    dropped = [name for name in old if name not in RESERVED.get(kind, frozenset()) | {"name"}]
    for name in dropped:
        del old[name]
        _record_removal(merged, (*key, name), where)
    lost = [name for name in dropped if name not in block]
    if lost:
        merged.notices.append(
            f"{where}: {dotted(key)}: {block['name']} replaces {old['name']}, whose keys are dropped: {', '.join(lost)}"
        )


def origin(merged: Merged, key: Key, otherwise: str) -> str:
    """The position of a value, or else of something in it or of the block around it."""
    inside = [place for place in merged.origins if place[: len(key)] == key]
    if key and inside and key not in merged.origins:
        return merged.origins[inside[0]]
    for end in range(len(key), 0, -1):
        if key[:end] in merged.origins:
            return merged.origins[key[:end]]
    return otherwise


def expand_home(merged: Merged) -> list[Found]:
    """Replaces `~/` and `~NAME/` at the start of every text by the home folder, in place: shells do it for words of
    their own, not behind `key=`. Returns the problems.
    """
    problems: list[Found] = []
    for key, text in list(leaves(merged.tree)):
        if isinstance(text, str) and HOME.match(text):
            path = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises where there is none
            if path == text:
                found = f"found {text!r}, and this system knows no such home folder"
                problems.append((key, Problem("no-such-file", found, hint="Write ./~ for a folder of this name.")))
            value_at(merged.tree, key[:-1])[key[-1]] = path
    return problems


def resolve(merged: Merged) -> list[Found]:
    """Replaces every `${a.b}` by the value of a.b, in place. Returns the problems.

    A reference names one plain value. Values that refer to nothing unresolved come first, and each result is limited in
    size, so that a recipe cannot grow exponentially by doubling a text.
    """
    problems: list[Found] = []
    waiting = {key: value for key, value in leaves(merged.tree) if isinstance(value, str) and "${" in value}
    if not waiting:
        return problems
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    while waiting and not problems:  # references to a value with a problem are not followed
        pending = {dotted(key) for key in waiting}
        ready = [key for key, text in waiting.items() if not pending & set(REFERENCE.findall(text))]
        if not ready:
            return [
                (key, Problem("invalid-reference", f"found {text!r}, which refers back to itself"))
                for key, text in waiting.items()
            ]
        config = OmegaConf.create(merged.tree)
        for key in ready:
            text = waiting.pop(key)
            problem = ""
            try:
                value: Any = config
                for part in key:
                    value = value[part]
            except OmegaConfBaseException:
                names = REFERENCE.findall(text)
                problem = f"but the recipe does not set {', '.join(names)} (a default does not count)"
            else:
                if OmegaConf.is_config(value):
                    problem = "which is a block"
                elif isinstance(value, str) and len(value) > MAX_CHARACTERS:
                    problem = f"which grows beyond {MAX_CHARACTERS} characters"
            if problem:
                problems.append((key, Problem("invalid-reference", f"found {text!r}, {problem}")))
            else:
                value_at(merged.tree, key[:-1])[key[-1]] = value
    expand_names(merged.tree)
    return problems
