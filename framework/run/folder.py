"""The folder that a run writes to, and the checkpoint that it resumes from."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from framework.checkpoint.export import CALIBRATION, FEATURES, MANIFEST, WEIGHTS, model_problems, publish_model
from framework.checkpoint.format import (
    CheckpointError,
    TrainState,
    checkpoints_of,
    clear_unfinished,
    is_checkpoint_name,
    read_train_state,
    step_of,
    verify_checkpoint,
)
from framework.distributed.launch import launch_id, restarts
from framework.recipe import Recipe, recipe_hash
from framework.recipe.explain import Difference, differences
from framework.recipe.saved import keys_in
from framework.recipe.source import is_within
from framework.run.listing import FAILURE, LOCK
from framework.runtime.console import print0
from framework.runtime.errors import Problem, Stopped, UserError
from framework.runtime.files import read_object
from framework.runtime.signals import WATCHER
from framework.topics.distill import TOPICS_FILE

ORPHANS_S = 60.0  # how long a process whose launcher was killed may hold the lock
DELETE_SCORES = "Delete it; `launch.py evaluate RUN` writes it again."
SHOWN = 8  # differences of a recipe in a message


@dataclass(frozen=True)
class OpenedRun:
    """The folder of a run.

    Attributes:
        checkpoint: the verified checkpoint to resume from, with its `train_state`; None for a new run.
        created: the topmost folder that did not exist before; None if all did.
    """

    folder: Path
    checkpoint: Path | None
    train_state: TrainState | None
    created: Path | None = None


def open_run(recipe: Recipe) -> OpenedRun:
    """Creates or finds the run's folder and its newest checkpoint that verifies. Called on the main process.

    Raises:
        UserError: the run exists and the recipe does not resume, or another process is writing to it.
        CheckpointError: there is no checkpoint to resume from, or another recipe trained it.
    """
    folder, named = _choose_folder(recipe)
    created = next((path for path in [*reversed(folder.parents), folder] if not path.exists()), None)
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    stop = folder / "STOP"
    if restarts() and stop.exists():
        raise Stopped(f"{stop} exists: not restarted")
    stop.unlink(missing_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    checkpoints = folder / "checkpoints"
    clear_unfinished(checkpoints)
    checkpoint = _verified(named, checkpoints)
    if checkpoint is None:
        return OpenedRun(folder, None, None, created)
    train_state = read_train_state(checkpoint)
    _require_same_recipe(checkpoint, train_state, recipe)
    renamed = _rename_newer(checkpoint, checkpoints)
    _restore_best_model(folder, checkpoint, train_state, renamed)
    return OpenedRun(folder, checkpoint, train_state)


def _restore_best_model(folder: Path, checkpoint: Path, train_state: TrainState, renamed: bool) -> None:
    """Publishes the model of the best checkpoint so far.

    A damaged best checkpoint still yields its model if the model itself verifies, there or in the run's folder. If
    neither does, both are renamed, and the best one is still to come.
    """
    best, model = checkpoint.parent / f"step-{train_state.best_step}", folder / "model"
    found: Problem | str | None = None
    if best != checkpoint:
        found = verify_checkpoint(best) if best.is_dir() else f"{best} was pruned" if renamed else None
    if found is None:
        if best.is_dir():  # whatever is at `model`: the run may have ended between a checkpoint and its model
            publish_model(best / "model", model)
        return
    if best.is_dir() and not model_problems(best / "model"):
        print0(f"warning: {found}. Its model is whole and stays the best so far")
        publish_model(best / "model", model)
        return
    if best.is_dir() and _is_model_of(model, best):
        print0(f"warning: {found}. Its model is whole in {model} and stays the best so far")
        publish_model(model, best / "model", {CALIBRATION: None, FEATURES: None})  # checkpoints have none
        return
    print0(f"warning: the best model so far cannot be used; the best one from here on is kept: {found}")
    train_state.best_score, train_state.best_step = None, None
    train_state.val_scores.pop(best.name, None)
    for path in (best, model):
        if path.exists():
            _rename_aside(path)


def _is_model_of(model: Path, checkpoint: Path) -> bool:
    """Whether an exported model verifies and has the weights that a checkpoint was written with."""
    try:
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))[f"model/{WEIGHTS}"]
        return bool(listed == json.loads((model / MANIFEST).read_text(encoding="utf-8"))[WEIGHTS]) and not (
            model_problems(model)
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _rename_aside(path: Path) -> Path:
    """Renames a checkpoint or model so that it is neither used nor deleted."""
    aside = path.with_name(f"aside-{path.name}-{datetime.now():%Y%m%d-%H%M%S}")
    path.replace(aside)
    print0(f"{path} is renamed to {aside.name}")
    return aside


def remove_refused_run(opened: OpenedRun) -> None:
    """Removes the run directory of a run that was refused, if it was created for it. Called on the main process."""
    if opened.created is None:
        return
    shutil.rmtree(opened.folder, ignore_errors=True)
    for above in opened.folder.parents:
        if not above.is_relative_to(opened.created):
            return
        try:
            above.rmdir()
        except OSError:  # it has another run
            return


def topics_to_keep(recipe: Recipe, opened: OpenedRun) -> Path | None:
    """topics.json of a resumed run, whose topics must not change; None for a new run or if they may change."""
    path = opened.folder / TOPICS_FILE
    may_change = any(is_within(key, "distiller") for key in recipe.resume_ignore)
    return path if opened.checkpoint is not None and path.is_file() and not may_change else None


def _choose_folder(recipe: Recipe) -> tuple[Path, Path | None]:
    """The folder, and the checkpoint in it if the recipe names one."""
    home, digest = Path(recipe.run.root) / recipe.path.stem, recipe_hash(recipe)[:8]
    before = _of_this_launch(home) if restarts() else None
    if before is not None:
        print0(f"attempt {restarts() + 1} of this launch: resuming {before}")
        return before, None
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{digest}" if recipe.run.name == "auto" else recipe.run.name
    if recipe.resume == "never":
        if (home / name / "checkpoints").is_dir():
            raise UserError(
                "file-exists",
                "a run with checkpoints is here already",
                place=home / name,
                hint="Choose another run.name, or resume it with resume=auto.",
            )
        return home / name, None
    if recipe.resume == "auto":
        if recipe.run.name != "auto":
            return home / name, None
        unfinished = _unfinished(home, digest)
        if unfinished is None:
            _print_nothing_to_resume(home, digest, recipe)
        return unfinished or home / name, None
    path = Path(recipe.resume)
    if path.parent.name == "checkpoints" and path.is_dir():
        if not is_checkpoint_name(path.name):
            raise CheckpointError(
                "no-checkpoint",
                f"{path} does not have the name of a checkpoint",
                place="resume",
                expected="RUN/checkpoints/step-N",
                hint="A renamed or copied checkpoint resumes under its own name, step-N.",
            )
        return path.parent.parent, path
    if not checkpoints_of(path / "checkpoints"):
        raise CheckpointError(
            "no-checkpoint",
            f"found no checkpoint in {path}",
            place="resume",
            expected="RUN with checkpoints or RUN/checkpoints/step-N",
        )
    return path, None


def _of_this_launch(home: Path) -> Path | None:
    """The run that an earlier attempt of the same launch created."""
    for run in sorted(home.glob("*/environment.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        if _launch_of(run).get("id") == launch_id():
            return run.parent
    return None


def _launch_of(environment: Path) -> dict[str, Any]:
    launch = read_object(environment, "Delete it.").get("launch")
    return launch if isinstance(launch, dict) else {}


def _unfinished(home: Path, digest: str) -> Path | None:
    """The newest run of this recipe without test scores."""
    for run in sorted(home.glob(f"*-{digest}"), reverse=True):
        scores = run / "scores.json"
        if not scores.is_file() or "test" not in read_object(scores, DELETE_SCORES):
            return run
    return None


def _print_nothing_to_resume(home: Path, digest: str, recipe: Recipe) -> None:
    """Prints why `resume=auto` starts a new run beside older ones of the same recipe file."""
    for run in sorted((path for path in home.glob("*-????????") if path.is_dir()), reverse=True):
        if run.name.endswith(f"-{digest}"):
            print0(f"notice: resume=auto: {run} has this recipe and is finished; starting a new run")
            return
        try:
            rows = differences(read_train_state(checkpoints_of(run / "checkpoints")[0]).recipe, recipe)
        except (IndexError, OSError, ValueError, TypeError, AttributeError):  # none, damaged, or another format
            continue
        keys = ",".join(dict.fromkeys(_known_key(row.key, recipe) for row in rows))
        print0(
            f"notice: resume=auto: no run has this recipe; starting a new one. The newest, {run}, has other values: "
            f"{_listed(rows)}. Restore them to resume it, or use 'resume={run}' 'resume_ignore=[{keys}]'"
        )
        return


def _listed(rows: Sequence[Difference]) -> str:
    listed = "; ".join(f"{row.key} was {row.before}, now {row.now}" for row in rows[:SHOWN])
    return f"{listed}; and {len(rows) - SHOWN} more" if len(rows) > SHOWN else listed


def _verified(named: Path | None, folder: Path) -> Path | None:
    """The named checkpoint, or the newest one that verifies; None if the run has none.

    Raises:
        CheckpointError: the named one is damaged, or all are.
    """
    found = checkpoints_of(folder)
    if named is not None:
        problem = verify_checkpoint(named)
        if problem is None:
            return named
        others = ", ".join(f"resume={path}" for path in found if path.resolve() != named.resolve())
        hint = f"Other checkpoints of this run: {others}." if others else problem.hint
        raise CheckpointError(problem.code, problem.found, place=problem.place, hint=hint)
    problems: list[Problem] = []
    for checkpoint in found:
        problem = verify_checkpoint(checkpoint)
        if problem is None:
            for newer in problems:
                print0(f"warning: resuming from {checkpoint}, since a newer checkpoint cannot be used: {newer}")
            return checkpoint
        problems.append(problem)
    if problems:
        raise CheckpointError.of(problems)
    return None


def _rename_newer(checkpoint: Path, folder: Path) -> bool:
    """Renames checkpoints newer than the one that the run resumes from, so that none is counted or resumed."""
    newer = [path for path in checkpoints_of(folder) if step_of(path) > step_of(checkpoint)]
    for path in newer:
        print0(f"{path} is newer than the resumed checkpoint")
        _rename_aside(path)
    return bool(newer)


def _require_same_recipe(checkpoint: Path, train_state: TrainState, recipe: Recipe) -> None:
    """Raises CheckpointError if the recipe differs in keys that can change the result, except those it ignores."""
    ignored = recipe.resume_ignore
    rows = [
        row for row in differences(train_state.recipe, recipe) if not any(is_within(row.key, key) for key in ignored)
    ]
    if not rows:
        return
    keys = ",".join(dict.fromkeys(_known_key(row.key, recipe) for row in rows))
    raise CheckpointError(
        "recipe-differs",
        f"trained under another recipe: {_listed(rows)}",
        place=checkpoint,
        hint="Restore these values, start over with resume=never, or resume all the same with "
        f"'resume_ignore=[{keys}]'.",
    )


def _known_key(key: str, recipe: Recipe) -> str:
    """The key, or the nearest key above it that the recipe has: what `resume_ignore` accepts."""
    known = keys_in(recipe)
    while key not in known and "." in key:
        key = key.rpartition(".")[0]
    return key


_locks: list[int] = []  # file descriptors


@contextmanager
def lock_released() -> Iterator[None]:
    """Releases the lock of the run that the block opens, so that this process can resume it."""
    try:
        yield
    finally:
        while _locks:
            os.close(_locks.pop())


def _lock(folder: Path) -> None:
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + (ORPHANS_S if restarts() or WATCHER in os.environ else 0)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.5)  # processes of the attempt that died hold it until they notice
                continue
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            raise UserError(
                "in-use",
                f"another process is writing to this run ({holder})",
                place=folder,
                hint="Stop it, or wait until it ends.",
            ) from None
        except OSError:
            os.close(file)
            return  # a file system without locks; only this check is lost
    os.ftruncate(file, 0)
    os.pwrite(file, f"pid {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    _locks.append(file)
