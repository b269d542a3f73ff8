"""A JSON Schema of recipe files with the plugins' own keys, by which editors complete and check.

It is draft 7, which yaml-language-server supports best. A file may be a base of others, so nothing is required except
the keys of a plugin that no base can set.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, TypeAdapter

from framework.recipe.merge import REPLACE
from framework.recipe.renamed import FORMAT
from framework.recipe.schema import NO_TOPICS, SLOTS, Choice, Loss, Optimizer, Recipe, Section, WeightSchedule
from framework.recipe.source import GROUPS, REFERENCE, shipped_recipes
from framework.registry import KINDS, Plugin, catalogue
from framework.registry.signature import class_texts, keys_of

Schema = dict[str, Any]
Files = tuple[Path, ...]

SECTION_OF_KIND: dict[str, type[Section]] = {"loss": Loss, "optimizer": Optimizer}  # their fields are beside the keys
REPLACES: Schema = {"const": True, "description": "Replaces the block of the base instead of merging with it."}
REFERS: Schema = {"$ref": "#/definitions/reference"}
NUMBER: Schema = {"anyOf": [{"type": "number"}, REFERS]}
TEXT: Schema = {"type": "string", "minLength": 1}
TEXTS: Schema = {"anyOf": [TEXT, {"type": "array", "items": TEXT}]}
BASE = "Recipes that this file extends, by a path relative to it or shipped:NAME. Values of this file win."


def json_schema(files: Files = ()) -> Schema:
    """The schema of recipe files, with the shipped and installed plugins and those of `files`.

    Raises:
        PluginError: a plugin whose keys cannot be read.
    """
    sections = _section(Recipe, (), files)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Sonoscribe recipe",
        "type": "object",
        "properties": {
            "_base_": {"description": BASE, **TEXTS},
            "format": {"description": "Format of a saved recipe.", "const": FORMAT},
            "plugins": {"description": meaning(Recipe, "plugins"), **TEXTS},
            **{name: _or_group(name, item) if name in GROUPS else item for name, item in sections.items()},
        },
        "additionalProperties": False,
        "if": {"not": {"required": ["_base_"]}},
        "then": {"allOf": _required(files)},
        "definitions": {
            "reference": {"type": "string", "pattern": f"^{REFERENCE.pattern}$", "description": "Another key's value."},
            **{kind: _plugin_block(kind, files) for kind in KINDS if kind in SLOTS.values() and kind != "loss"},
        },
    }


def as_text(schema: Schema) -> str:
    """The schema as a file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def meaning(section: type[Section], field: str) -> str:
    """The docstring of a field, or else of the section that it holds."""
    models = [model for model in section.__mro__ if issubclass(model, Section)]
    written = (_texts(model.__module__).get((model.__name__, field)) for model in models)
    text = next(filter(None, written), getattr(section.model_fields[field].annotation, "__doc__", None))
    assert text, f"{section.__module__}: {section.__name__}.{field} has no docstring"
    return " ".join(text.split())


@cache
def _texts(module: str) -> dict[tuple[str, str], str]:
    """The docstrings of the fields of all sections in a module."""
    found = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        for field, below in pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[node.name, ast.unparse(field.target)] = str(ast.literal_eval(below.value))  # type: ignore[attr-defined]
    return found


def _section(model: type[Section], key: tuple[str, ...], files: Files) -> dict[str, Schema]:
    """The fields of a section: values, plugins and inner sections."""
    values = model.model_json_schema()["properties"]
    fields = {}
    for word, name in model.field_names().items():
        field, here = model.model_fields[name], (*key, word)
        if here == ("plugins",):
            continue
        if here in SLOTS:
            item = _slot(SLOTS[here], files)
            if values[name].get("default", ...) is None:
                item["anyOf"].insert(1, {"type": "null"})
        elif here == ("losses",):
            item = _block({plugin.name: _loss(plugin) for plugin in _plugins("loss", files)})
        elif here == ("evaluate", "metrics"):
            item = {"type": "array", "items": _slot("metric", files), "uniqueItems": True}
        elif here == ("evaluate", "monitor"):
            scores = [f"val/{score}" for p in _plugins("metric", files) for score in class_texts(p, "names") or ()]
            score = _value({"type": "string", "pattern": "^val/.", "examples": scores})["anyOf"]
            weights = dict.fromkeys(scores, NUMBER) | {REPLACE: REPLACES}
            names = {"pattern": f"^(val/.|{REPLACE}$)"}  # a metric of a plugin file may have other scores
            summed = {"type": "object", "properties": weights, "additionalProperties": NUMBER, "propertyNames": names}
            item = {"anyOf": [*score, summed], "default": field.default}
        elif here == ("loss", "weight"):
            number = _value(TypeAdapter(NonNegativeFloat).json_schema())["anyOf"]
            moving = {**_block(_section(WeightSchedule, here, files)), "required": ["to"]}
            item = {"anyOf": [*number, moving], "default": field.default}
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            item = _block(_section(field.annotation, here, files))
        else:
            item = _value(values[word])
            if field.default_factory is not None:  # pydantic's schema omits it
                item["default"] = field.get_default(call_default_factory=True)
        fields[word] = {"description": meaning(model, name), **item}
    return fields


def _block(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", **_only({**properties, REPLACE: REPLACES})}


def _only(properties: dict[str, Schema]) -> Schema:
    return {"properties": properties, "additionalProperties": False}


def _value(made: Schema) -> Schema:
    """pydantic's schema of a value as draft 7. A scalar may also be a reference."""
    schema = {word: item for word, item in made.items() if word not in ("title", "default")}
    default = {"default": made["default"]} if "default" in made else {}
    if "anyOf" in schema:
        options = [option for item in map(_value, schema["anyOf"]) for option in item.get("anyOf", [item])]
        return {"anyOf": [option for at, option in enumerate(options) if option not in options[:at]], **default}
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            schema["items"] = [_value(item) for item in schema.pop("prefixItems")]
        elif "items" in schema:
            schema["items"] = _value(schema["items"])
        return {**schema, **default}
    if schema.get("type") == "object":
        if isinstance(schema.get("additionalProperties"), dict):
            schema["additionalProperties"] = _value(schema["additionalProperties"])
        return {**schema, "properties": {REPLACE: REPLACES}, **default}
    as_it_is = schema in ({}, {"type": "string"}, {"type": "null"})
    return {**(schema if as_it_is else {"anyOf": [schema, REFERS]}), **default}


def _plugins(kind: str, files: Files) -> list[Plugin]:
    return sorted((p for p in catalogue(files).values() if p.kind == kind), key=lambda p: p.name)


def _keys(plugin: Plugin) -> dict[str, Schema]:
    """The keys of a plugin's block beside its name."""
    keys = _section(SECTION_OF_KIND[plugin.kind], (plugin.kind,), ()) if plugin.kind in SECTION_OF_KIND else {}
    keys = {name: item for name, item in keys.items() if name not in ("name", "keys")}
    for key in keys_of(plugin):
        made = TypeAdapter(key.type).json_schema()
        made = made if key.required else {**made, "default": key.default}
        keys[key.name] = {**({"description": key.doc} if key.doc else {}), **_value(made)}
    return keys


def _names(kind: str, files: Files) -> Schema:
    """The names of a kind with their summaries."""
    names = {plugin.name: plugin.summary for plugin in _plugins(kind, files)}
    if kind == "distiller":
        names[NO_TOPICS] = "Finds no topics."
    return {"anyOf": [{"enum": list(names), "enumDescriptions": list(names.values())}, REFERS]}


def _plugin_block(kind: str, files: Files) -> Schema:
    """A block of a kind: the keys of the named plugin, or of any plugin, since a base may name it."""
    keys = {plugin.name: _keys(plugin) for plugin in _plugins(kind, files)}
    if kind == "distiller":
        keys[NO_TOPICS] = {}
    any_key: dict[str, list[Schema]] = {}
    for block in keys.values():
        for key, item in block.items():
            if item not in any_key.setdefault(key, []):
                any_key[key].append(item)
    union = {key: items[0] if len(items) == 1 else {"anyOf": items} for key, items in any_key.items()}
    in_list = kind == "metric"  # which no base completes
    name_key = {"description": meaning(Choice, "name"), **_names(kind, files)}
    replace = {} if in_list else {REPLACE: REPLACES}
    return {
        "type": "object",
        "properties": {"name": name_key},
        **({"required": ["name"]} if in_list else {}),
        "if": {"required": ["name"], "properties": {"name": {"enum": list(keys)}}},
        "then": {
            "allOf": [_if_named(plugin, _only({"name": {}, **block, **replace})) for plugin, block in keys.items()]
        },
        "else": _only({"name": {}, **union, **replace}),
    }


def _if_named(plugin: str, then: Schema) -> Schema:
    return {"if": {"required": ["name"], "properties": {"name": {"const": plugin}}}, "then": then}


def _slot(kind: str, files: Files) -> Schema:
    """A plugin as its name or a block, as alternatives so that editors offer both."""
    return {"anyOf": [*_names(kind, files)["anyOf"], {"$ref": f"#/definitions/{kind}"}]}


def _loss(plugin: Plugin) -> Schema:
    return {"description": plugin.summary, "type": ["object", "null"], **_only({**_keys(plugin), REPLACE: REPLACES})}


def _or_group(section: str, block: Schema) -> Schema:
    """A section, or the name of its file: `data: busbra` is recipes/data/busbra.yaml."""
    shipped = [name.removeprefix(f"{section}/") for name in shipped_recipes() if name.startswith(f"{section}/")]
    name = {**TEXT, **({"examples": shipped} if shipped else {})}
    return {"description": block.pop("description"), "anyOf": [name, block]}


def _required(files: Files) -> list[Schema]:
    """The required keys of each named plugin, for files without a base."""
    rules = []
    for slot, plugin in [(slot, plugin) for slot, kind in SLOTS.items() for plugin in _plugins(kind, files)]:
        names = [key.name for key in keys_of(plugin) if key.required]
        if not names:
            continue
        rule: Schema = {"type": "object", "required": names}
        if plugin.kind == "loss":
            rule = {"if": {"type": "object"}, "then": rule}
        else:
            block = {"type": "object", **_if_named(plugin.name, {})["if"]}
            rule = {"if": {"anyOf": [{"const": plugin.name}, block]}, "then": rule}
        for part in reversed(slot):
            if part == "*" and plugin.kind != "loss":
                rule = {"items": rule}
            else:
                rule = {"properties": {plugin.name if part == "*" else part: rule}}
        rules.append(rule)
    return rules
