"""What `ls` and `describe` tell of kinds, plugins and recipes, from their text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from framework.recipe.schema import SLOTS
from framework.recipe.source import RECIPES
from framework.registry import KINDS, Plugin, PluginError, catalogue, did_you_mean, find, short
from framework.signature import RESERVED, keys_of

RECIPE_WORD = "recipe"  # `ls recipe` lists these, though they are no plugins
Row = tuple[str, str, str, str]


def plugin_rows(kind: str | None, files: tuple[Path, ...] = ()) -> list[Row]:
    """Kind, name, summary and place of every plugin, of one kind if asked."""
    kind = kind.removesuffix("s") if kind and kind not in KINDS else kind  # `ls losses` reads well too
    kind = "loss" if kind == "losse" else kind
    if kind is not None and kind not in KINDS:
        known = [*KINDS, RECIPE_WORD]
        raise PluginError(f"Unknown kind '{kind}'.{did_you_mean(kind, known)} Known: {', '.join(known)}")
    order = list(KINDS)
    plugins = [p for p in catalogue(files).values() if kind in (None, p.kind)]
    plugins.sort(key=lambda p: (order.index(p.kind), p.name))
    return [(p.kind, p.name, p.summary, short(p.path)) for p in plugins]


def recipe_rows() -> list[Row]:
    """Name and first line of the head comment of every shipped recipe."""
    rows: list[Row] = []
    for path in sorted(RECIPES.rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        name = str(path.relative_to(RECIPES).with_suffix(""))
        rows.append((RECIPE_WORD, name, first.lstrip("# ") if first.startswith("#") else "", short(path)))
    return rows


def find_by_words(word: str, files: tuple[Path, ...] = ()) -> Plugin:
    """The plugin of `kind/name`, or of a name alone where only one kind has it."""
    kind, slash, name = word.partition("/")
    if slash:
        if kind not in KINDS:
            raise PluginError(f"Unknown kind '{kind}'.{did_you_mean(kind, KINDS)} Known: {', '.join(KINDS)}")
        return find(kind, name, files)
    known = catalogue(files)
    homes = [k for k, n in known if n == word]
    if len(homes) == 1:
        return known[homes[0], word]
    if homes:
        raise PluginError(f"'{word}' is of several kinds: {', '.join(f'{k}/{word}' for k in homes)}")
    words = [f"{k}/{n}" for k, n in known]
    by_name = did_you_mean(word, [n for _, n in known])
    raise PluginError(f"Unknown plugin '{word}'.{by_name} Known: {', '.join(words)}")


def key_rows(plugin: Plugin) -> list[Row]:
    """Name, type, default and meaning of every recipe key of a plugin."""
    return [
        (key.name, key.type_text, "(required)" if key.required else _as_yaml(key.default), key.doc)
        for key in keys_of(plugin)
    ]


def body(plugin: Plugin) -> str:
    """The documentation without its summary and `Args:`, which stand elsewhere."""
    lines, kept, skipping = plugin.doc.split("\n")[1:], [], False
    for line in lines:
        if line.startswith("Args:"):
            skipping = True
        elif skipping and line.strip() and not line.startswith(" "):
            skipping = False
        if not skipping:
            kept.append(line)
    return "\n".join(kept).strip()


def _as_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    return text.removesuffix("\n").removesuffix("...").removesuffix("\n")


def snippet(plugin: Plugin) -> str:
    """A piece of recipe that uses a plugin, every key with its default; `???` where the recipe must choose."""
    slot = next(slot for slot, kind in SLOTS.items() if kind == plugin.kind)
    keys = [f"{key.name}: {'???' if key.required else _as_yaml(key.default)}" for key in keys_of(plugin)]
    beside = {"weight": "1.0", "lr": "0.001", "encoder_lr": "null"}
    keys = [f"{word}: {beside[word]}" for word in sorted(RESERVED.get(plugin.kind, ()), reverse=True)] + keys
    if plugin.kind != "loss":
        keys = [f"name: {plugin.name}", *keys]
    block = "{" + ", ".join(keys) + "}"
    lines = []
    for depth, part in enumerate(slot):
        word = f"{part}:" if part != "*" else f"{plugin.name}:" if plugin.kind == "loss" else "-"
        lines.append(f"{'  ' * depth}{word}")
    return "\n".join(lines) + f" {block}"
