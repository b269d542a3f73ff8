"""The verbs of data sets: `data init`, `data check`, `data make`, `data shard`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from framework.cli.options import Overrides, RecipeArgument, load
from framework.runtime.errors import UserError


def init(
    source: Annotated[Path, typer.Argument(metavar="FOLDER|TABLE", help="A table of exams, or a folder with one.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The recipe; by default named as the table, here.")
    ] = None,
) -> None:
    """Write a recipe for your own table and images, and show what it assumes."""
    from framework.data.draft import draft_recipe
    from framework.runtime.files import atomic_write

    out = out or Path(f"{source.resolve().stem}.yaml")
    if out.exists():
        raise UserError("file-exists", "this file exists", place=out, hint="Name another file by --out, or move it.")
    draft = draft_recipe(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, draft.recipe)
    print(f"{out} assumes")
    for what, how in draft.assumed:
        print(f"  {what:8} {how}")
    for what in draft.not_found:
        print(f"  not found: {what}")
    from framework.build import build_dataset

    build_dataset(load(str(out), None)).splits()  # prints the numbers of exams
    print(f"Next: launch.py data check {out}; launch.py {out}")


def check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Read every exam of a recipe's data set and list the unusable ones."""
    loaded = load(recipe, overrides)
    from framework.build import build_dataset
    from framework.data.check import check as check_exams

    def count(done: int, total: int) -> None:
        print(f"\r{done} of {total} exams", end="\n" if done == total else "", file=sys.stderr, flush=True)

    result = check_exams(build_dataset(loaded), count if sys.stderr.isatty() else None)
    for problem in result.errors:
        print(problem)
    for problem in result.warnings:
        print(f"warning: {problem}")
    for notice in result.notices:
        print(f"notice: {notice}")
    errors, warnings = len(result.errors), len(result.warnings)
    print(f"{errors} problem{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    if errors:
        raise typer.Exit(2)


def make(
    recipe: RecipeArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    overrides: Overrides = None,
) -> None:
    """Write a recipe's data set as a manifest with PNG images."""
    loaded = load(recipe, overrides)
    from framework.build import build_dataset
    from framework.data.export import write_manifest

    path = write_manifest(build_dataset(loaded), folder)
    print(f"{path}\nIn a recipe:\n\ndata:\n  dataset: {{name: manifest, file: {path}, images: {folder}}}")


def shard(
    recipe: RecipeArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder, or one that a killed run left.")],
    overrides: Overrides = None,
    exams: Annotated[int, typer.Option(min=1, metavar="N", help="Exams of a shard.")] = 1000,
    processes: Annotated[int | None, typer.Option(min=1, metavar="N", help="By default one per core.")] = None,
) -> None:
    """Write a recipe's data set as WebDataset shards with an index; continues where a killed run ended."""
    loaded = load(recipe, overrides)
    from framework.build import build_dataset
    from framework.data.shard_writing import write_shards

    source, on_broken = build_dataset(loaded), loaded.data.on_broken
    write_shards(source, folder, exams_per_shard=exams, processes=processes, on_broken=on_broken)
    print(f"In a recipe:\n\ndata:\n  dataset: {{name: webdataset, shards: {folder}}}")
