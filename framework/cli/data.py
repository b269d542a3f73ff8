"""The verbs of data sets: `data check`, `data make`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from framework.cli.options import Overrides, RecipeArgument, load


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
