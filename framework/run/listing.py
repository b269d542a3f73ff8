"""Lists the runs below a folder with their scores and states. Does not import torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from framework.recipe import load_saved_recipe
from framework.runtime.files import is_locked, read_object

ENVIRONMENT = "environment.json"  # written when a run starts or resumes; marks the folder of a run
LOCK = ".lock"  # held by the process that trains
FAILURE = "failure.json"  # why training ended by an error; removed when the run resumes
COPY = "Copy the run again."

State = Literal["running", "finished", "failed", "interrupted"]


@dataclass(frozen=True)
class ListedRun:
    """What the files of a run say. Without a checkpoint or a readable recipe, values are None.

    Attributes:
        recipe: the name of the folder above.
        started: when it was started or resumed the last time.
        monitor: the score that selects the model, and `best`, its best value so far.
        state: `finished` has test scores; `interrupted` was stopped or killed, and can be resumed.
        reason: why it failed.
    """

    run: str
    recipe: str
    started: datetime
    monitor: str | None
    best: float | None
    epoch: int
    epochs: int | None
    state: State
    reason: str | None


def list_runs(root: Path) -> list[ListedRun]:
    """The runs below a folder, or in it, the newest first."""
    return sorted(map(_listed, _folders(root)), key=lambda run: (run.started, run.run), reverse=True)


def _folders(root: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(root):
        if ENVIRONMENT in files:
            inner.clear()  # a run is in no other run
            yield Path(folder)
        inner[:] = [name for name in inner if not name.startswith(".")]


def _listed(run: Path) -> ListedRun:
    recipe = None
    with contextlib.suppress(ValueError, OSError):  # of another version, or damaged
        recipe = load_saved_recipe(run / "recipe.yaml")
    state = _newest_train_state(run)
    failure = _read(run / FAILURE)
    return ListedRun(
        run=str(run),
        recipe=run.resolve().parent.name,
        started=datetime.fromtimestamp((run / ENVIRONMENT).stat().st_mtime).astimezone(),
        monitor=None if recipe is None else recipe.evaluate.monitor_words,
        best=state.get("best_score"),
        epoch=state.get("epoch", 0),
        epochs=None if recipe is None else recipe.train.epochs,
        state=_state(run, failed=bool(failure)),
        reason=failure.get("reason"),
    )


def _state(run: Path, *, failed: bool) -> State:
    if (run / LOCK).is_file() and is_locked(run / LOCK):
        return "running"
    if "test" in _read(run / "scores.json"):
        return "finished"
    return "failed" if failed else "interrupted"


def _newest_train_state(run: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError):  # no checkpoint yet, or its pointer is being replaced
        return _read(run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip() / "trainer.json")
    return {}


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none or it is damaged: a list shows what can be read."""
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = read_object(path, COPY)
        return found
    return {}
