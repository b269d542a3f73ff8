"""Finds the executor that a grid file or the command line names, and makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from framework.grid.executor import Executor
from framework.grid.file import ReadGrid
from framework.recipe import RecipeError
from framework.recipe.check import explain
from framework.registry import Plugin, PluginError, find, load
from framework.registry.signature import injected_params, model_of

KIND = "executor"


def choose_executor(read: ReadGrid, named: str | None = None) -> tuple[Plugin, dict[str, Any]]:
    """The executor plugin, and its keys with defaults filled in: the grid file's, if it names this one.

    Args:
        named: on the command line; None: the grid file's.

    Raises:
        RecipeError: there is none of this name, or it does not take these keys.
    """
    said = dict(read.said.executor)
    name = said.pop("name", None)
    at = f"{read.where((KIND,))}: {KIND}"
    if not isinstance(name, str):
        raise RecipeError(f"{at}: needs name, such as {{name: local}}")
    if named is not None and named != name:
        name, said, at = named, {}, f"--{KIND}"
    try:
        plugin = find(KIND, name, read.plugin_files)
        keys = model_of(plugin).model_validate(said, strict=True).model_dump(by_alias=True)
    except ValidationError as error:
        names = [str(field.alias) for field in model_of(plugin).model_fields.values()]
        found = explain(error, said, (), lambda place: names if place == () else [])
        raise RecipeError.of([problem.at(f"{at}.{'.'.join(map(str, key))}") for key, problem in found]) from None
    except PluginError as error:
        raise RecipeError.of([problem.at(at) for problem in error.problems]) from None
    return plugin, keys


def build_executor(read: ReadGrid, folder: Path, named: str | None, jobs: int | None) -> Executor:
    """Makes the executor.

    Args:
        folder: of the grid.
        jobs: cells at once; None: as the executor can.
    """
    plugin, keys = choose_executor(read, named)
    known = {"jobs": jobs, "folder": folder / plugin.name.replace("/", "-")}
    handed = {word: known[word] for word in injected_params(plugin)}
    if jobs is not None and "jobs" not in handed:
        raise RecipeError(f"--jobs: executor {plugin.name} does not take it")
    built: Executor = load(plugin)(**keys, **handed)
    return built
