"""Executors start the cells of a grid: their interface, and how the executor of a grid is chosen and built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from framework.grid.file import ParsedGrid
from framework.recipe.check import explain
from framework.registry import Plugin, PluginError, find, load
from framework.registry.signature import injected_params, model_of
from framework.runtime.errors import UserError

KIND = "executor"
State = Literal["waiting", "running", "gone"]


@dataclass(frozen=True)
class Job:
    """A command that trains one cell. Its results are files in the cell's folder, on a disk that all machines share."""

    name: str  # for queues and people: no spaces
    command: tuple[str, ...]
    log: Path  # the command's output is appended to it


class Handle(Protocol):
    """A job that was started."""

    def state(self) -> State:
        """`waiting` in a queue, `running`, or `gone`: ended, for whatever reason."""

    def cancel(self) -> None:
        """Sends SIGTERM to a running job, so that it saves first; removes a waiting one from the queue."""


class Executor(Protocol):
    """Built with the keys of the grid file and, if its signature has them, these run-time values:

    jobs: maximum number of cells at once, from `--jobs`; None: as many as there is room for.
    folder: for the executor's own files; it may not exist yet.
    """

    processes: int  # per cell; `accelerate launch` starts them

    def room(self) -> int:
        """How many more jobs it can take now."""

    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Starts or queues at most `room()` jobs, in the working directory of this process.

        Raises:
            ValueError: they cannot be started here, and why.
        """

    def close(self) -> None:
        """Releases what it holds. Running jobs continue if the executor can leave them running."""


def choose_executor(grid: ParsedGrid, override: str | None = None) -> tuple[Plugin, dict[str, Any]]:
    """Returns the executor plugin and its keys with defaults filled in.

    Args:
        override: name from the command line; with another name than the grid file's, the keys are the defaults.

    Raises:
        UserError: no executor has this name, or it does not take these keys.
    """
    keys = dict(grid.spec.executor)
    name, at = keys.pop("name", None), grid.place((KIND,))
    if not isinstance(name, str):
        raise UserError("missing-key", "found no name", place=at, expected="a plugin, such as {name: local}")
    if override is not None and override != name:
        name, keys, at = override, {}, f"--{KIND}"
    try:
        plugin = find(KIND, name, grid.plugin_files)
        return plugin, model_of(plugin).model_validate(keys, strict=True).model_dump(by_alias=True)
    except ValidationError as error:
        names = [str(field.alias) for field in model_of(plugin).model_fields.values()]
        found = explain(error, keys, (), lambda place: names if place == () else [])
        raise UserError.of(problem.at(f"{at}.{'.'.join(map(str, key))}") for key, problem in found) from None
    except PluginError as error:
        raise UserError.of(problem.at(at) for problem in error.problems) from None


def build_executor(grid: ParsedGrid, folder: Path, override: str | None, jobs: int | None) -> Executor:
    """Builds the executor.

    Args:
        folder: of the grid.
        jobs: maximum number of cells at once; None: as many as the executor can run.
    """
    plugin, keys = choose_executor(grid, override)
    known = {"jobs": jobs, "folder": folder / plugin.name.replace("/", "-")}
    injected = {name: known[name] for name in injected_params(plugin)}
    if jobs is not None and "jobs" not in injected:
        raise UserError("ignored-setting", f"executor {plugin.name} does not take it", place="--jobs")
    executor: Executor = load(plugin)(**keys, **injected)
    return executor
