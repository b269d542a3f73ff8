"""The verbs of plugins: ls, describe, new."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framework.cli.options import Files, Json, files_of
from framework.runtime.console import print_json, print_table

if TYPE_CHECKING:
    from framework.registry import Plugin

# The kinds of files that `ls` lists beside plugins.
FILES = {"recipe": "a run, or part of one", "grid": "an ablation: recipes that differ in some keys"}


def ls(
    kind: Annotated[str | None, typer.Argument(help="A kind of plugin, `recipe` or `grid`; default: all.")] = None,
    plugins: Files = None,
    broken: Annotated[
        bool, typer.Option("--broken", help="Plugins that cannot be used, with the reason; imports all others.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List plugins, recipes and grids, one line each."""
    files = files_of(plugins)
    if broken:
        _ls_broken(files, as_json)
        return
    from framework.grid.file import shipped_grids
    from framework.recipe.describe import GRID_WORD, RECIPE_WORD, plugins_of, rows_of_files
    from framework.recipe.source import shipped_recipes
    from framework.registry import KINDS, short

    shipped = {RECIPE_WORD: shipped_recipes, GRID_WORD: shipped_grids}
    only = next((word for word in shipped if kind in (word, f"{word}s")), None)
    found = [] if only else plugins_of(kind, files)
    rows = [(p.kind, p.name, p.summary, p.origin, short(p.path)) for p in found]
    for word, files_of_word in shipped.items():
        if kind is None or only == word:
            rows += [(word, name, head, "shipped", where) for name, head, where in rows_of_files(files_of_word())]
    headers = ("kind", "name", "summary", "from", "where")
    if as_json:
        print_json([dict(zip(("kind", "name", "summary", "origin", "where"), row)) for row in rows])
    elif sys.stdout.isatty():
        for group, members in groupby(rows, key=lambda row: row[0]):
            summary = FILES[group] if group in FILES else KINDS[group].summary
            print_table(headers[1:], [row[1:] for row in members], f"{group}: {summary}")
    else:
        print_table(headers, rows)


def _ls_broken(files: tuple[Path, ...], as_json: bool) -> None:
    from framework.registry import broken as find_broken

    found = find_broken(files, importing=True)
    if as_json:
        print_json([asdict(item) for item in found])
    elif found:
        print_table(("kind", "name", "where", "reason"), [(i.kind, i.name, i.where, i.reason) for i in found])
    else:
        print("no broken plugins")


def describe(
    name: Annotated[str, typer.Argument(metavar="KIND/NAME", help="Such as encoder/resnet.")],
    plugins: Files = None,
    as_json: Json = False,
    read: Annotated[
        str | None, typer.Option("--read", metavar="TEXT", help="Show instead how a metric reads this text.")
    ] = None,
) -> None:
    """Show a plugin's signature, keys, defaults, units and source, and a snippet for a recipe."""
    from framework.recipe.describe import as_yaml, find_by_words, stands_in
    from framework.recipe.describe import describe as describe_plugin

    plugin = find_by_words(name, files_of(plugins))
    if read is not None:
        _explain(plugin, read, as_json)
        return
    found = describe_plugin(plugin)
    if as_json:
        print_json(asdict(found))
        return
    print(f"{found.kind}/{found.name}: {found.summary}")
    print(f"{found.where} ({found.origin})\n{found.signature}\n")
    if found.body:
        print(f"{found.body}\n")
    if found.keys:
        defaults = ["(required)" if key.required else as_yaml(key.default) for key in found.keys]
        rows = [(k.name, k.type, default, k.unit, k.meaning) for k, default in zip(found.keys, defaults)]
        print_table(("key", "type", "default", "unit", "meaning"), rows)
    else:
        print("No keys.")
    print()
    for value, meaning in found.injected_params.items():
        print(f"Set by the run: {value}, {meaning}")
    for label, values in (("Needs", found.needs), ("Gives", found.gives)):
        if values:
            print(f"{label}: {', '.join(values)}")
    if found.source:
        print(f"Source: {found.source}")
    print(f"\nIn {stands_in(found.kind)}:\n\n{found.snippet}")


def _explain(plugin: Plugin, text: str, as_json: bool) -> None:
    from framework.registry import load
    from framework.runtime.errors import UserError

    explain = getattr(load(plugin), "explain", None)
    if explain is None:
        name = f"{plugin.kind}/{plugin.name}"
        raise UserError(
            "unsupported", f"{name} reads no findings", place="--read", expected="such as metric/findings_f1"
        )
    rows = explain(text)
    if as_json:
        print_json([{"finding": finding, "words": words} for finding, words in rows])
    elif rows:
        print_table(("finding", "words"), rows)
    else:
        print("no findings")


def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Such as loss.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name in recipes.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; default: here.")] = Path(),
    shipped: Annotated[
        bool, typer.Option("--shipped", help="FOLDER is the repository: write into plugins/ and tests/.")
    ] = False,
) -> None:
    """Write a working plugin file and its test from a template."""
    from framework.recipe.describe import snippet, stands_in
    from framework.registry import find, short
    from framework.testing.scaffold import write_plugin

    path, test = (file.resolve() for file in write_plugin(kind, name, folder, shipped=shipped))
    files = "" if shipped else f"plugins: [{short(path)}]\n"
    print(f"{short(path)}\n{short(test)}\n\nTry it:\n\n    {_python()} -m pytest {short(test)}\n")
    print(f"In {stands_in(kind)}:\n\n{files}{snippet(find(kind, name, () if shipped else (path,)))}")


def _python() -> str:
    """How a shell starts the Python of this installation, whose pytest may not be the first one on the path."""
    from framework.registry import short

    on_path = shutil.which("python")
    return "python" if on_path and Path(on_path) == Path(sys.executable) else shlex.quote(short(Path(sys.executable)))
