"""The words that several verbs take, and how a recipe is read from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from framework.recipe import Recipe

RECIPE_HELP = "A recipe file, or the name of a shipped recipe."
OVERRIDES_HELP = (
    "key=value, read as in a recipe file; data=NAME for a file of recipes/data; ~key takes a value out; "
    "+key=value adds one."
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help=RECIPE_HELP)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=OVERRIDES_HELP)]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]
Files = Annotated[
    list[Path] | None,
    typer.Option("--plugins", metavar="FILE", help="A plugin file outside the package; may come several times."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
Average = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="Write with the average of the weights of the N best checkpoints."),
]
Ensemble = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="Write with the N best checkpoints together, word by word."),
]
With = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="RUN", help="Write together with this run's model too; may come several times."),
]


def files_of(files: list[Path] | None) -> tuple[Path, ...]:
    return tuple(path.resolve() for path in files or ())


def load(named: str, overrides: Sequence[str] | None) -> Recipe:
    from framework.recipe import load_recipe

    return load_recipe(named, overrides or ())


def is_override(word: str) -> bool:
    """Whether a word behind a verb changes a recipe, rather than naming one."""
    return word[:1] in ("~", "+") or ("=" in word and not Path(word).exists())


def must_exist(path: Path, what: str) -> None:
    if not path.exists():
        from framework.registry import did_you_mean

        near = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        guess = did_you_mean(str(path), near)
        raise ValueError(f"{path}: no such {what}{guess and f'.{guess}'}")
