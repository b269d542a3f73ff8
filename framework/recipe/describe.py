"""Describes kinds, plugins, recipes and grids for `ls` and `describe`, without importing plugins."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from framework.recipe.json_schema import SECTION_OF_KIND
from framework.recipe.schema import SLOTS
from framework.recipe.source import read_text
from framework.registry import KINDS, Plugin, PluginError, broken, catalogue, did_you_mean, find, short, unusable
from framework.registry.signature import RESERVED, Key, gives, injected_params, keys_of, needs
from framework.registry.source import unknown_name

# `ls` lists these beside plugins.
RECIPE_WORD = "recipe"
GRID_WORD = "grid"
MODELINE = "# yaml-language-server:"
# The meaning of each injected parameter.
INJECTED = {
    "channels": "channels of an image (data.channels)",
    "hf_config": "transformers config of pretrained weights; None without",
    "vocabulary_size": "size of the tokenizer's vocabulary",
    "vocabulary": "the tokenizer's tokens by id",
    "feature_width": "width of the encoder's features",
    "max_length": "longest report in tokens (evaluate.max_length)",
    "segment": "the tokenizer's function from text to words",
    "seed": "random seed (train.seed)",
    "topic_count": "number of topics",
    "word_vectors_WD": "vector of each token in the report space",
    "cache_dir": "folder of caches, from data.cache_dir",
    "make_reward": "builds the reward from weights of scores (its key reward)",
    "training_reports": "the reports of the training exams",
    "language": "language of the tokenizer, en or zh",
    "groups": "parameter groups by learning rate and weight decay",
    "steps": "number of steps of the run",
    "jobs": "number of cells at once (--jobs); None if not given",
    "folder": "folder for its own files",
}
SECTION = re.compile(r"^([A-Z]\w+):[ \t]*\n((?:[ \t]+.*(?:\n|\Z)|[ \t]*\n)+)", re.MULTILINE)
JSON_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "array": "list",
    "object": "mapping",
}
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


@dataclass(frozen=True)
class KeyDescription:
    """One key of a plugin as text."""

    name: str
    type: str
    required: bool
    default: Any
    unit: str
    meaning: str


@dataclass(frozen=True)
class Description:
    """A plugin as text, known without importing it."""

    kind: str
    name: str
    summary: str
    body: str
    source: str  # paper and equation
    where: str  # file:line
    module: str | None  # None for a file that a recipe names
    origin: str  # "shipped", "file", or the name and version of its distribution
    signature: str
    injected_params: dict[str, str]  # name and meaning
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    keys: tuple[KeyDescription, ...]
    snippet: str


def describe(plugin: Plugin) -> Description:
    """Describes a plugin. Raises PluginError if its signature, `needs` or `gives` cannot be read."""
    model_part = plugin.kind in ("encoder", "decoder", "loss", "distiller")
    return Description(
        kind=plugin.kind,
        name=plugin.name,
        summary=plugin.summary,
        body=body(plugin),
        source=source(plugin),
        where=plugin.where,
        module=plugin.module,
        origin=plugin.origin,
        signature=f"{plugin.qualname}({_arguments(plugin)})",
        injected_params={name: INJECTED[name] for name in injected_params(plugin)},
        needs=needs(plugin) if model_part else (),
        gives=gives(plugin) if model_part else (),
        keys=tuple(_key(key) for key in keys_of(plugin)),
        snippet=snippet(plugin),
    )


def plugins_of(kind: str | None, files: tuple[Path, ...] = ()) -> list[Plugin]:
    """The plugins of a kind, or of all kinds, sorted by name. Accepts plurals such as `losses`."""
    if kind is not None:
        singular = {f"{known}es" if known.endswith("s") else f"{known}s": known for known in KINDS}
        kind = singular.get(kind, kind)
        if kind not in KINDS:
            raise PluginError.of([unknown_name("kind", kind, [*KINDS, RECIPE_WORD, GRID_WORD])])
    order = list(KINDS)
    plugins = [plugin for plugin in catalogue(files).values() if kind in (None, plugin.kind)]
    return sorted(plugins, key=lambda plugin: (order.index(plugin.kind), plugin.name))


def rows_of_files(files: Mapping[str, Path]) -> list[tuple[str, str, str]]:
    """Name, first line of the head comment, and path of recipes or grids."""
    rows = []
    for name, path in files.items():
        comments = [line for line in read_text(path).splitlines() if line.startswith("#")]
        head = next((line.lstrip("# ") for line in comments if not line.startswith(MODELINE)), "")
        rows.append((name, head, short(path)))
    return rows


def find_by_words(word: str, files: tuple[Path, ...] = ()) -> Plugin:
    """The plugin `kind/name`, or the only plugin called `name` or `vendor/name`.

    Raises:
        PluginError: there is none, or several.
    """
    kind, slash, name = word.partition("/")
    if slash and kind in KINDS:
        return find(kind, name, files)
    known = catalogue(files)
    if not slash and kind in KINDS:
        of_kind = ", ".join(f"{k}/{n}" for k, n in sorted(known) if k == kind)
        raise PluginError("unknown-name", f"'{kind}' is a kind of plugin", expected=f"one of: {of_kind}")
    for item in broken(files):
        if item.name == word and not any(name == word for _, name in known):
            raise unusable(item)
    homes = [key for key in known if key[1] == word] or [key for key in known if key[1].split("/")[-1] == word]
    if len(homes) == 1:
        return known[homes[0]]
    if homes:
        several = ", ".join("/".join(key) for key in homes)
        raise PluginError("unknown-name", f"several plugins are called '{word}'", expected=f"one of: {several}")
    names = ["/".join(key) for key in known]
    guess = did_you_mean(word, names) or did_you_mean(word, [name for _, name in known])
    raise PluginError("unknown-name", f"unknown plugin '{word}'", hint=f"{guess} Known: {', '.join(names)}".strip())


def source(plugin: Plugin) -> str:
    """The `Source:` section of the docstring on one line: paper, section, equation."""
    return next((" ".join(text.split()) for title, text in SECTION.findall(plugin.doc) if title == "Source"), "")


def body(plugin: Plugin) -> str:
    """The docstring without its summary, `Args:` and `Source:`."""
    rest = plugin.doc.split("\n", 1)[1] if "\n" in plugin.doc else ""
    return SECTION.sub(lambda match: "" if match[1] in ("Args", "Source") else match[0], rest).strip()


def in_words(schema: dict[str, Any], quote: Callable[[Any], str] = str) -> str:
    """The type of a value in plain words, from its JSON Schema.

    Args:
        quote: formats single values.
    """
    if "anyOf" in schema:
        return " or ".join(in_words(option, quote) for option in schema["anyOf"] if "$ref" not in option)
    if "enum" in schema or "const" in schema:
        return ", ".join(quote(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind is None:
        return "anything"
    if kind in ("boolean", "null"):
        return " or ".join(quote(word) for word in JSON_TYPES[kind].split(" or "))
    word = JSON_TYPES[kind]
    inner = schema.get("items") or schema.get("additionalProperties")
    if isinstance(inner, dict):
        word += f" of {in_words(inner, quote)}"
    limits = [f"{text} {schema[limit]:.12g}" for limit, text in LIMITS.items() if limit in schema]
    return f"{word} {', '.join(limits)}" if limits else word


def as_yaml(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(
        list(value) if isinstance(value, tuple) else value, default_flow_style=True, allow_unicode=True, width=1000
    )
    return text.removesuffix("\n").removesuffix("...").removesuffix("\n")


def stands_in(kind: str) -> str:
    """The file in which plugins of a kind are named: "a recipe" or "a grid file"."""
    return "a recipe" if kind in SLOTS.values() else "a grid file"


def snippet(plugin: Plugin) -> str:
    """YAML that uses a plugin, each key with its default or `???`; of a grid file for an executor, else of a recipe."""
    slot = next((slot for slot, kind in SLOTS.items() if kind == plugin.kind), (plugin.kind,))
    keys = [f"{key.name}: {'???' if key.required else as_yaml(key.default)}" for key in keys_of(plugin)]
    if plugin.kind in SECTION_OF_KIND:
        fields = SECTION_OF_KIND[plugin.kind].model_fields
        defaults = {name: fields[name].get_default(call_default_factory=True) for name in RESERVED[plugin.kind]}
        keys = [f"{name}: {as_yaml(defaults[name])}" for name in sorted(defaults, reverse=True)] + keys
    if plugin.kind != "loss":
        keys = [f"name: {plugin.name}", *keys]
    block = "{" + ", ".join(keys) + "}"
    lines = []
    for depth, part in enumerate(slot):
        word = f"{part}:" if part != "*" else f"{plugin.name}:" if plugin.kind == "loss" else "-"
        lines.append(f"{'  ' * depth}{word}")
    return "\n".join(lines) + f" {block}"


def _key(key: Key) -> KeyDescription:
    words = in_words(
        TypeAdapter(key.type).json_schema(), lambda value: value if isinstance(value, str) else json.dumps(value)
    )
    default = None if key.required else list(key.default) if isinstance(key.default, tuple) else key.default
    return KeyDescription(key.name, words, key.required, default, key.unit, key.doc)


def _arguments(plugin: Plugin) -> str:
    """The signature in the source, without `self`."""
    arguments = plugin.arguments
    if isinstance(plugin.node, ast.ClassDef):
        arguments = ast.arguments(
            posonlyargs=[],
            args=[*arguments.posonlyargs, *arguments.args][1:],
            vararg=None,
            kwonlyargs=arguments.kwonlyargs,
            kw_defaults=arguments.kw_defaults,
            kwarg=None,
            defaults=arguments.defaults,
        )
    return ast.unparse(arguments)
