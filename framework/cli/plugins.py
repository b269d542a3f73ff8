"""The verbs of plugins: ls, describe, new."""

from __future__ import annotations

from pathlib import Path
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


def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Such as loss.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="As recipes will call it.")],
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to write; here, if left out.")] = Path(),
    shipped: Annotated[
        bool, typer.Option("--shipped", help="FOLDER is the repository; write into plugins/ and tests/.")
    ] = False,
) -> None:
    """Write a plugin file and its test from a template; both work as they stand."""
    from framework.listing import snippet
    from framework.registry import find, short
    from framework.scaffold import write_plugin

    path, test = write_plugin(kind, name, folder, shipped=shipped)
    path = path.resolve()
    files = "" if shipped else f"plugins: [{short(path)}]\n"
    print(f"{short(path)}\n{short(test.resolve())}\n\nTry it:\n\n    pytest {short(test.resolve())}\n")
    print(f"In a recipe:\n\n{files}{snippet(find(kind, name, () if shipped else (path,)))}")
