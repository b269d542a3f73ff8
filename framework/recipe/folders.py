"""Checks the runs and files that a recipe names, as far as that needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from framework.recipe.schema import Recipe
from framework.recipe.source import RecipeError
from framework.registry import did_you_mean
from framework.runtime.errors import Problem

WAYS = ("never", "auto")  # of resume, besides a folder


def require_folders(recipe: Recipe) -> None:
    """Raises RecipeError if `resume`, `init_from` or `distributed.deepspeed_config` names nothing that can be used.

    Saved recipes are not checked: a run stays usable after the run that it started from is gone.
    """
    if problems := list(_problems(recipe)):
        raise RecipeError.of(problems)


def _problems(recipe: Recipe) -> Iterator[Problem]:
    resume = Path(recipe.resume)
    if recipe.resume not in WAYS and not any(_checkpoints(resume)):
        yield Problem(
            "no-checkpoint",
            f"found no checkpoint in {recipe.resume!r}",
            recipe.origins.get("resume", "resume"),
            "never, auto, RUN with checkpoints, or RUN/checkpoints/step-N",
            did_you_mean(recipe.resume, WAYS).strip(),
        )
    if recipe.init_from is not None:
        source = Path(recipe.init_from)
        if not (source / "model").is_dir() and not (source / "manifest.json").is_file():
            found, expected = f"found no model in {recipe.init_from!r}", "RUN, or RUN/checkpoints/step-N"
            yield Problem("no-model", found, recipe.origins.get("init_from", "init_from"), expected)
    config = recipe.distributed.deepspeed_config
    if config is not None and not Path(config).is_file():
        place = recipe.origins.get("distributed.deepspeed_config", "distributed.deepspeed_config")
        yield Problem("no-such-file", f"no such file: {config!r}", place)


def _checkpoints(path: Path) -> Iterator[Path]:
    """The checkpoint at this path, or those of the run."""
    if path.parent.name == "checkpoints" and path.is_dir():
        yield path
    yield from (path / "checkpoints").glob("step-*")
