"""Arguments and options that several verbs take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framework.registry.trust import mark_as_named
from framework.runtime.errors import UserError
from framework.runtime.files import real_path

if TYPE_CHECKING:
    from framework.recipe import Recipe

RECIPE_HELP = "A recipe file, or the name of a shipped recipe."
OVERRIDES_HELP = "key=value sets, +key=value adds, ~key removes; data=NAME takes the file NAME of recipes/data."

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help=RECIPE_HELP)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help=OVERRIDES_HELP)]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Files = Annotated[
    list[Path] | None,
    typer.Option("--plugins", metavar="FILE", help="A plugin file; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Average = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="Average the weights of the N best checkpoints."),
]
Ensemble = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="Ensemble of the N best checkpoints: averages their token probabilities."),
]
With = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="RUN", help="Add the model of this run to the ensemble; may be repeated."),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run plugin files that come with a saved model or run, and remember their hashes."),
]


def trust_code_of(folder: Path) -> None:
    """Trusts the plugin files and commands of a model, given its folder or that of its run or checkpoint."""
    from framework.recipe import load_saved_recipe
    from framework.registry.trust import trust, trust_commands

    found = [path for path in (folder / "model" / "recipe.yaml", folder / "recipe.yaml") if path.is_file()]
    if found:  # else the command says that there is no model
        recipe = load_saved_recipe(found[0])
        trust(recipe.plugin_files)
        trust_commands(recipe.commands)


def files_of(files: list[Path] | None) -> tuple[Path, ...]:
    found = tuple(real_path(path) for path in files or ())
    mark_as_named(found)
    return found


def load(named: str, overrides: Sequence[str] | None) -> Recipe:
    from framework.recipe import load_recipe

    return load_recipe(named, overrides or ())


def is_override(word: str) -> bool:
    """Whether an argument is an override rather than the name of a recipe."""
    return word[:1] in ("~", "+") or ("=" in word and not os.path.exists(word))  # noqa: PTH110 - Path.exists raises for a long word


def must_exist(path: Path, what: str) -> None:
    """Raises UserError, with the nearest match, if there is no such path."""
    if not path.exists():
        from framework.registry import did_you_mean

        near = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(str(path), near).strip()
        raise UserError("no-such-file", f"no such {what}", place=path, hint=hint)
