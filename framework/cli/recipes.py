"""The verbs of recipes: cp, validate, explain, diff, schema, plan."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framework.cli.options import RECIPE_HELP, Files, Json, Overrides, RecipeArgument, files_of, is_override, load
from framework.runtime.console import print_json, print_table

if TYPE_CHECKING:
    from framework.recipe import Recipe


def cp(
    recipe: RecipeArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy: a new .yaml file, or a folder.")],
) -> None:
    """Copy a recipe for editing, and adjust the paths in it."""
    from framework.recipe.copying import copy_recipe

    print(copy_recipe(recipe, file))


def validate(
    words: Annotated[list[str], typer.Argument(metavar="RECIPE|KEY=VALUE", help=RECIPE_HELP)],
) -> None:
    """Check recipes without running them: report all mistakes with file, line and column."""
    from framework.recipe import RecipeError, recipe_hash
    from framework.recipe.folders import require_folders
    from framework.runtime.errors import Problem

    named = [word for word in words if not is_override(word)]
    overrides = [word for word in words if is_override(word)]
    if not named:
        raise typer.BadParameter("name at least one recipe")
    problems: list[Problem] = []
    for name in named:
        try:
            recipe = load(name, overrides)
            notices = list(recipe.notices)
            require_folders(recipe)
            _look_for_sides(recipe, notices)
        except RecipeError as error:
            problems += error.problems
            continue
        print(f"{name}: OK ({recipe_hash(recipe)})")
        for notice in notices:
            print(f"  notice: {notice}")
    if problems:
        raise RecipeError.of(problems)


def _look_for_sides(recipe: Recipe, notices: list[str]) -> None:
    """Checks that no training report names a side if images are mirrored. Adds a notice if it cannot.

    Raises:
        RecipeError: a report names a side.
    """
    from framework.recipe.laterality import mirrors_by
    from framework.registry import find

    augment = recipe.data.augment
    key = None if augment is None else mirrors_by(find("augment", augment.name, recipe.plugin_files), augment.keys)
    if key is None:
        return
    from framework.build import build_dataset, load_reports, require_no_mirrored_sides  # takes seconds to import

    try:
        reports = load_reports(build_dataset(recipe))["train"]
    except (ValueError, OSError):
        notices.append(
            f"data.augment.{key} mirrors images, and the reports cannot be read to check that none names a side; "
            "`data check` gives the reason"
        )
    else:
        require_no_mirrored_sides(recipe, reports)


def explain(
    recipe: RecipeArgument,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Such as model.encoder.width, or a block.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Show the value of a key and its earlier values, each with the file, override or default that set it."""
    from framework.recipe.explain import explain as explain_key
    from framework.recipe.explain import explain_rows

    loaded = load(recipe, overrides)
    if as_json:
        print_json([vars(found) for found in explain_key(loaded, key)])
    else:
        print_table(("key", "value", "from"), explain_rows(loaded, key))


def diff(
    recipe: RecipeArgument,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The recipe to compare with.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides of OTHER.")] = None,
    as_json: Json = False,
) -> None:
    """Compare two recipes, defaults included: each value that differs, and where it is set."""
    from framework.recipe.explain import diff_rows

    headers = ("key", recipe, other if not overrides else f"{other} {' '.join(overrides)}", "from", "from ")
    rows = diff_rows(load(recipe, None), load(other, overrides))
    if as_json:
        names = ("key", "one", "other", "one_from", "other_from")
        print_json([dict(zip(names, row)) for row in rows])
    elif rows:
        print_table(headers, rows)
    else:
        print("no difference")


def schema(plugins: Files = None) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from framework.recipe.json_schema import as_text, json_schema

    print(as_text(json_schema(files_of(plugins))), end="")


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="Number of training processes.")] = 1,
    probe: Annotated[bool, typer.Option("--probe", help="Time a few steps, for half a minute.")] = False,
    as_json: Json = False,
) -> None:
    """Show parameters, memory, steps and tokens of a recipe without training, and with --probe its time."""
    loaded = load(recipe, overrides)
    from framework.plan.plan import plan as make_plan
    from framework.plan.probe import probe as time_it
    from framework.plan.tables import (
        MEMORY_HEADER,
        MEMORY_NOTES,
        PART_HEADER,
        memory_rows,
        part_rows,
        plan_rows,
        probe_rows,
    )

    found = make_plan(loaded, processes)
    timed = time_it(loaded, found) if probe else None
    if as_json:
        print_json({**asdict(found), "probe": None if timed is None else asdict(timed)})
        return
    print_table(("what", "value"), plan_rows(found), "Plan")
    print()
    print_table(PART_HEADER, part_rows(found), "Model")
    print()
    print_table(MEMORY_HEADER, memory_rows(found), "Memory of each process")
    print(*MEMORY_NOTES, sep="\n")
    if timed is not None:
        print()
        print_table(("what", "value"), probe_rows(timed), "Time")
