"""Writes docs/reference/ and docs/troubleshooting.md from the code: every key, every shipped plugin, every error code.

python docs/make_reference.py           writes the files
python docs/make_reference.py --check   exits with 1 and the names of those that are stale
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import troubleshooting  # noqa: E402

from framework.grid.file import GridFile  # noqa: E402
from framework.recipe.describe import SECTION, describe, in_words  # noqa: E402
from framework.recipe.json_schema import SECTION_OF_KIND, json_schema, meaning  # noqa: E402
from framework.recipe.merge import REPLACE, value_at  # noqa: E402
from framework.recipe.schema import CHOICES, SLOTS, Section  # noqa: E402
from framework.recipe.source import Key  # noqa: E402
from framework.registry import KINDS, PLUGINS, Plugin, catalogue  # noqa: E402

FOLDER = ROOT / "docs"
NOTE = "<!-- Written by docs/make_reference.py from the code: change it there, then run that again. -->"
REQUIRED = "(required)"
HEAD = ("key", "type", "default", "meaning")
PLUGIN_HEAD = ("key", "type", "default", "unit", "meaning")
Schema = dict[str, Any]


def table(rows: list[tuple[str, ...]], head: tuple[str, ...] = HEAD) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def code(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"


def default(key: Key, schema: Schema) -> str:
    if "default" in schema:
        return code(schema["default"])
    try:
        chosen = value_at(CHOICES, key)
    except KeyError:
        return "`null`" if {"type": "null"} in schema.get("anyOf", ()) else REQUIRED
    return code(", ".join(item["name"] for item in (chosen if isinstance(chosen, list) else [chosen])))


def row(key: Key, schema: Schema) -> tuple[str, ...]:
    kind = SLOTS.get(key) or SLOTS.get((*key, "*"))
    words = in_words(schema, code) if kind is None else f"[{kind}](plugins.md#{kind})"
    if kind in ("loss", "metric"):
        words = f"{'block' if kind == 'loss' else 'list'} of {words}"
    elif kind and {"type": "null"} in schema["anyOf"]:
        words = f"{words} or `null`"
    return code(key[-1]), words, default(key, schema), schema["description"]


def beside(kind: str, schema: Schema) -> str:
    """Keys that a recipe adds to the block of a plugin."""
    block = schema["definitions"].get(kind, {}).get("else") or next(iter(_losses(schema).values()))
    names = [name for name in SECTION_OF_KIND[kind].model_fields if name in block["properties"] and name != "name"]
    return table([row((kind, name), block["properties"][name]) for name in names])


def _losses(schema: Schema) -> Schema:
    block = schema["properties"]["losses"]["anyOf"][-1]
    return {name: item for name, item in block["properties"].items() if name != REPLACE}


def recipe_page() -> str:
    schema = json_schema()
    parts = [
        NOTE,
        "# Keys of a recipe",
        "Every key with its type and default. [recipes.md](../recipes.md) explains how files, groups and overrides are "
        "merged; [plugins.md](plugins.md) lists the keys of plugins.",
        "A plugin is given by its name (`distiller: lda`) or as a block (`distiller: {name: lda, topics: 12}`). "
        "`${a.b}` in place of a value takes the value of another key.",
        "## Files",
        table(
            [
                (code(name), "text or list of texts", "none", schema["properties"][name]["description"])
                for name in ("_base_", "plugins")
            ]
            + [
                (
                    code("format"),
                    code(schema["properties"]["format"]["const"]),
                    "none",
                    schema["properties"]["format"]["description"],
                )
            ]
            + [(code(REPLACE), "`true`", "merge", "In any block: drops what the base sets in it.")]
        ),
    ]
    for name, item in schema["properties"].items():
        block = item["anyOf"][-1] if "anyOf" in item else item
        if name in ("_base_", "plugins", "format"):
            continue
        parts.append(f"## {name}")
        if (name,) in SLOTS or name == "losses":
            kind = SLOTS.get((name,), "loss")
            parts.append(table([row((name,), item)]))
            if kind in SECTION_OF_KIND:
                parts += [f"Every {kind} also takes, in addition to the keys of its plugin:", beside(kind, schema)]
        elif "properties" in block:
            keys = {key: inner for key, inner in block["properties"].items() if key != REPLACE}
            parts += [item["description"], table([row((name, key), inner) for key, inner in keys.items()])]
        else:
            parts.append(table([row((name,), item)]))
    return "\n\n".join(parts) + "\n"


def grids_page() -> str:
    parts = [
        NOTE,
        "# Keys of a grid file",
        "Every key with its type and default. [grids.md](../grids.md) explains grids; "
        "[plugins.md](plugins.md#executor) lists the keys of executors.",
        *grid_tables("The file", GridFile),
    ]
    return "\n\n".join(parts) + "\n"


def grid_tables(head: str, model: type[Section]) -> Iterator[str]:
    """The table of a block of keys, then those of its inner blocks."""
    yield f"## {head}"
    yield inspect.getdoc(model) or ""
    yield table([grid_row(model, field) for field in model.model_fields])
    for field, inner in sections_in(model).items():
        yield from grid_tables(field, inner)


def grid_row(model: type[Section], field: str) -> tuple[str, ...]:
    made, inner = model.model_fields[field], sections_in(model).get(field)
    if field == "executor":
        words = "[executor](plugins.md#executor)"
    elif inner:
        words = f"[block](#{field})"
    else:
        words = in_words(model.model_json_schema()["properties"][field], code)
    if made.is_required():
        value = REQUIRED
    else:
        found = made.get_default(call_default_factory=True)
        value = "its keys' own" if isinstance(found, Section) else code(found)
    return code(field), words, value, " ".join(meaning(model, field).split())


def sections_in(model: type[Section]) -> dict[str, type[Section]]:
    """The fields that are blocks of keys."""
    found = {}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                found[name] = kind
    return found


def plugin_part(plugin: Plugin) -> str:
    """One plugin: summary, rest of the docstring, keys, and a block to paste."""
    found = describe(plugin)
    place = plugin.path.relative_to(PLUGINS.parent)
    # Indented sections would be blocks of code in Markdown.
    text = SECTION.sub(lambda part: f"{part[1]}: {one_line(part[2])}\n\n", found.body)
    keys = [
        (code(key.name), key.type, REQUIRED if key.required else code(key.default), key.unit, key.meaning)
        for key in found.keys
    ]
    fit = [
        f"{word}: {', '.join(values)}." for word, values in (("Needs", found.needs), ("Gives", found.gives)) if values
    ]
    return "\n\n".join(
        part
        for part in (
            f"### {plugin.kind}/{plugin.name}",
            plugin.summary,
            text.strip(),
            f"Source: {found.source}" if found.source else "",
            " ".join([f"Code: [{place}](../../{place}).", *fit]),
            table(keys, PLUGIN_HEAD) if keys else "It has no keys.",
            f"```yaml\n{found.snippet}\n```",
        )
        if part
    )


def one_line(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split())


def plugins_page() -> str:
    parts = [
        NOTE,
        "# Shipped plugins",
        "Each plugin with its keys and a block to paste, in which every key has its default; `???` marks a value that "
        "the recipe must set. Executors are set in a [grid file](../grids.md#executors). [plugins.md](../plugins.md) "
        "explains how to write a plugin.",
    ]
    shipped = sorted((p for p in catalogue().values() if p.path.is_relative_to(PLUGINS)), key=lambda p: p.name)
    for kind in KINDS.values():
        parts += [f"## {kind.name}", f"{kind.summary[:1].upper()}{kind.summary[1:]}."]
        parts += [plugin_part(plugin) for plugin in shipped if plugin.kind == kind.name]
    return "\n\n".join(parts) + "\n"


def troubleshooting_page() -> str:
    return f"{NOTE}\n\n{troubleshooting.page()}"


PAGES = {
    "reference/recipe.md": recipe_page,
    "reference/grids.md": grids_page,
    "reference/plugins.md": plugins_page,
    "troubleshooting.md": troubleshooting_page,
}


def main(words: list[str]) -> int:
    if words not in ([], ["--check"]):
        print(f"found {' '.join(words)}, expected nothing or --check", file=sys.stderr)
        return 2
    stale = []
    for name, make in PAGES.items():
        path, text = FOLDER / name, make()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(f"docs/{name}")
        if not words:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if words and stale:
        print(f"stale: {', '.join(stale)}; run: python docs/make_reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
