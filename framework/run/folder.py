"""Which folder a run writes to, and which checkpoint it goes on from."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from framework.checkpoint.export import publish_model
from framework.checkpoint.format import (
    CheckpointError,
    TrainState,
    checkpoints_of,
    clear_unfinished,
    read_train_state,
    step_of,
    verify_checkpoint,
)
from framework.distributed.launch import launch_id, restarts
from framework.recipe import Recipe, recipe_hash
from framework.recipe.explain import differences
from framework.recipe.saved import keys_in
from framework.recipe.source import is_within
from framework.runtime.console import print0
from framework.runtime.errors import Stopped
from framework.runtime.signals import WATCHER
from framework.topics.distill import TOLD

ORPHANS_S = 60.0  # how long a training whose launcher or watcher was killed may live on
SHOWN = 8  # differences of a recipe that are told


@dataclass(frozen=True)
class OpenedRun:
    folder: Path
    checkpoint: Path | None  # verified
    train_state: TrainState | None  # its own
    made: Path | None = None  # the topmost folder that was not there before


def open_run(recipe: Recipe) -> OpenedRun:
    """Makes or finds the run's folder, and the newest checkpoint of it that is whole. For the main process.

    Raises:
        ValueError: the named run exists and the recipe does not resume, or somebody else is writing to it.
        CheckpointError: there is nothing to resume from, or it was trained under another recipe.
    """
    folder, named = _find(recipe)
    made = next((path for path in [*reversed(folder.parents), folder] if not path.exists()), None)
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    stop = folder / "STOP"
    if restarts() and stop.exists():
        raise Stopped(f"{stop} is there: not started again")
    stop.unlink(missing_ok=True)
    checkpoints = folder / "checkpoints"
    clear_unfinished(checkpoints)
    checkpoint = _verified(named, checkpoints)
    if checkpoint is None:
        return OpenedRun(folder, None, None, made)
    train_state = read_train_state(checkpoint)
    _same_recipe(checkpoint, train_state, recipe)
    aside = _set_aside(checkpoint, checkpoints)
    best = checkpoints / f"step-{train_state.best_step}"
    problem = (
        None
        if best == checkpoint
        else verify_checkpoint(best)
        if best.is_dir()
        else f"{best}: pruned"
        if aside
        else None
    )
    if problem is not None:
        print0(f"warning: the best model so far cannot be used, and the best of what follows is kept: {problem}")
        train_state.best, train_state.best_step = None, None
        train_state.kept.pop(best.name, None)
        shutil.rmtree(folder / "model", ignore_errors=True)  # the same bytes under a second name
    elif best.is_dir():  # whatever stands at `model`: a run may have died between a checkpoint and its model
        publish_model(best / "model", folder / "model")
    return OpenedRun(folder, checkpoint, train_state)


def take_back(opened: OpenedRun) -> None:
    """Removes the folder of a run that was refused before it began, if it was made for it. For the main process."""
    if opened.made is None:
        return
    shutil.rmtree(opened.folder, ignore_errors=True)
    for above in opened.folder.parents:
        if not above.is_relative_to(opened.made):
            return
        try:
            above.rmdir()
        except OSError:  # another run is in it
            return


def topics_that_stay(recipe: Recipe, opened: OpenedRun) -> Path | None:
    """What tells the topics of a run that goes on, which it must keep; None where it begins anew or may have others."""
    told = opened.folder / TOLD
    others = any(is_within(key, "distiller") for key in recipe.resume_ignore)
    return told if opened.checkpoint is not None and told.is_file() and not others else None


def _find(recipe: Recipe) -> tuple[Path, Path | None]:
    """The folder, and the checkpoint in it if one was named."""
    home, digest = Path(recipe.run.root) / recipe.path.stem, recipe_hash(recipe)[:8]
    before = _of_this_launch(home) if restarts() else None
    if before is not None:
        print0(f"start number {restarts() + 1} of this launch: going on with {before}")
        return before, None
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{digest}" if recipe.run.name == "auto" else recipe.run.name
    if recipe.resume == "never":
        if (home / name / "checkpoints").is_dir():
            raise ValueError(
                f"{home / name} holds a run already. Take another run.name, or resume=auto to go on with it."
            )
        return home / name, None
    if recipe.resume == "auto":
        return (_unfinished(home, digest) if recipe.run.name == "auto" else None) or home / name, None
    asked = Path(recipe.resume)
    if asked.parent.name == "checkpoints" and asked.is_dir():
        return asked.parent.parent, asked
    if not checkpoints_of(asked / "checkpoints"):
        raise CheckpointError(
            f"resume: {asked} is no checkpoint and no run with one; expected RUN or RUN/checkpoints/step-N"
        )
    return asked, None


def _of_this_launch(home: Path) -> Path | None:
    """The run that an earlier attempt of the same launch has begun."""
    for run in sorted(home.glob("*/environment.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        if json.loads(run.read_text(encoding="utf-8")).get("launch", {}).get("id") == launch_id():
            return run.parent
    return None


def _unfinished(home: Path, digest: str) -> Path | None:
    """The newest run of this very recipe that has not come to its scores."""
    for run in sorted(home.glob(f"*-{digest}"), reverse=True):
        scores = run / "scores.json"
        if not scores.is_file() or "test" not in json.loads(scores.read_text(encoding="utf-8")):
            return run
    return None


def _verified(named: Path | None, folder: Path) -> Path | None:
    """The named checkpoint, or the newest that is whole; None if there is none at all."""
    found = checkpoints_of(folder)
    if named is not None:
        problem = verify_checkpoint(named)
        if problem is None:
            return named
        others = ", ".join(f"resume={path}" for path in found if path.resolve() != named.resolve())
        raise CheckpointError(problem + (f". Others of this run: {others}" if others else ""))
    problems: list[str] = []
    for checkpoint in found:
        problem = verify_checkpoint(checkpoint)
        if problem is None:
            if problems:
                print0(f"warning: going on from {checkpoint}, since newer ones cannot be used:")
                for line in problems:
                    print0(f"  {line}")
            return checkpoint
        problems.append(problem)
    if problems:
        listed = "\n".join(f"  {line}" for line in problems)
        raise CheckpointError(f"{folder}: none of its {len(problems)} checkpoints can be used:\n{listed}")
    return None


def _set_aside(checkpoint: Path, folder: Path) -> bool:
    """Renames what is newer than the checkpoint that the run goes on from: another line of it, which must neither push
    out what is written now nor be gone on with.
    """
    newer = [path for path in checkpoints_of(folder) if step_of(path) > step_of(checkpoint)]
    for path in newer:
        aside = path.with_name(f"aside-{path.name}-{datetime.now():%Y%m%d-%H%M%S}")
        path.replace(aside)
        print0(f"{path} is newer, and now called {aside.name}")
    return bool(newer)


def _same_recipe(checkpoint: Path, train_state: TrainState, recipe: Recipe) -> None:
    """Raises CheckpointError where the recipe differs in what may change the result, and it was not told so."""
    rows = differences(train_state.recipe, recipe)
    allowed = recipe.resume_ignore
    told = [row for row in rows if not any(is_within(row.key, key) for key in allowed)]
    if not told:
        return
    lines = [f"  {row.key}: {row.before} then, {row.now} now" for row in told[:SHOWN]]
    if len(told) > SHOWN:
        lines.append(f"  and {len(told) - SHOWN} more")
    keys = ",".join(dict.fromkeys(_known(row.key, recipe) for row in told))
    raise CheckpointError(
        f"{checkpoint} was trained under another recipe:\n" + "\n".join(lines) + "\n"
        f"Take these back, start anew with resume=never, or go on all the same: 'resume_ignore=[{keys}]'"
    )


def _known(key: str, recipe: Recipe) -> str:
    """The key, or what it stood in where the recipe has it no more: what `resume_ignore` takes."""
    known = keys_in(recipe)
    while key not in known and "." in key:
        key = key.rpartition(".")[0]
    return key


_held: list[Any] = []  # locks last as long as the process


def _lock(folder: Path) -> None:
    file = (folder / ".lock").open("a+")
    patience = time.monotonic() + (ORPHANS_S if restarts() or WATCHER in os.environ else 0)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < patience:
                time.sleep(0.5)  # the workers of the attempt that died hold it until they notice
                continue
            file.seek(0)
            raise ValueError(f"{folder}: another process is writing to this run ({file.read().strip()})") from None
        except OSError:
            return  # a file system without locks; nothing is lost by it but this check
    file.seek(0)
    file.truncate()
    file.write(f"pid {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    _held.append(file)
