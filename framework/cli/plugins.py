"""The verbs of plugins: ls, describe, new."""

from __future__ import annotations

from typing import Annotated

import typer

from framework.cli.show import show
from framework.cli.words import Files, files_of


def ls(
    kind: Annotated[str | None, typer.Argument(help="A kind of plugin, or `recipe`; else all.")] = None,
    plugins: Files = None,
) -> None:
    """List plugins and recipes, one line each."""
    from framework.listing import RECIPE_WORD, plugin_rows, recipe_rows

    rows = [] if kind in (RECIPE_WORD, "recipes") else plugin_rows(kind, files_of(plugins))
    if kind in (None, RECIPE_WORD, "recipes"):
        rows += recipe_rows()
    show(("kind", "name", "what it is", "where"), rows)


def describe(
    name: Annotated[str, typer.Argument(metavar="KIND/NAME", help="Such as encoder/resnet.")], plugins: Files = None
) -> None:
    """Show a plugin's keys, types, defaults and documentation, and a piece of recipe to paste."""
    from framework.listing import body, find_by_words, key_rows, snippet

    plugin = find_by_words(name, files_of(plugins))
    print(f"{plugin.kind}/{plugin.name}: {plugin.summary}\n{plugin.where}\n")
    rows = key_rows(plugin)
    if rows:
        show(("key", "type", "default", "meaning"), rows)
    else:
        print("It has no keys.")
    text = body(plugin)
    print(f"\n{text}\n" if text else "")
    print(f"In a recipe:\n\n{snippet(plugin)}")
