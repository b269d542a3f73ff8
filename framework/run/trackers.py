"""MLflow and Weights & Biases, by Accelerate's trackers: the recipe, and numbers by name and step.

No report, image, exam or patient is sent, and of what both programs collect by themselves as little as they allow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from accelerate.tracking import MLflowTracker, WandBTracker

from framework.recipe import Recipe
from framework.recipe.saved import plain, values
from framework.recipe.source import dotted
from framework.runtime.console import print0
from framework.runtime.errors import Problem, Stopped, UserError, first_line
from framework.runtime.files import atomic_write, read_object
from framework.runtime.packages import package_versions

IDS = "trackers.json"  # in a run's folder: its id in each tracker, under which a resumed run continues
PROJECT = "sonoscribe"
PACKAGES = {"mlflow": ("mlflow", "mlflow-skinny"), "wandb": ("wandb",)}  # any of them
STORE = "MLFLOW_TRACKING_URI"  # environment variable


def require_trackers(recipe: Recipe) -> None:
    """Raises UserError if the package of a tracker is not installed."""
    missing = [name for name in recipe.run.trackers if name in PACKAGES and not package_versions(PACKAGES[name])]
    if missing:
        hint = "pip install 'sonoscribe[trackers]', or remove it from run.trackers."
        raise UserError.of(
            Problem("missing-package", f"the tracker {name} needs the package {name}", "run.trackers", hint=hint)
            for name in missing
        )


def tracked_config(recipe: Recipe, launch: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of the recipe by its dotted key, and the settings of the launch. Lists are JSON."""
    tree = {**plain(recipe), "launch": {key: value for key, value in launch.items() if key != "id"}}
    return {
        dotted(key): value if isinstance(value, (bool, int, float, str)) else json.dumps(value, ensure_ascii=False)
        for key, value in values(tree)
    }


class _Tracker(Protocol):
    """A run in a tracker.

    Attributes:
        id: of the run there.
        hint: how to look at it.
    """

    id: str
    hint: str

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def send(self, step: int, values: Mapping[str, float]) -> None: ...

    def end(self, *, failed: bool) -> None: ...


class _MLflow(MLflowTracker):  # type: ignore[misc]
    """A run in the store that the environment names, or else in the files of the folder `mlruns` beside all runs."""

    def __init__(self, run: Path, root: Path, run_id: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        self.mlflow, self.has_own_store = mlflow, STORE not in os.environ
        self.hint = f"mlflow ui --backend-store-uri {os.environ.get(STORE)}"
        if self.has_own_store:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri(root / "mlruns")
            self.hint = f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {root / 'mlruns'}"
        hidden = dict.fromkeys(("mlflow.user", "mlflow.source.name", "mlflow.source.git.repoURL"), "")
        super().__init__(PROJECT, run_id=run_id, run_name=_title(run), tags=hidden)
        self.start()
        self.id = self.active_run.info.run_id

    def send(self, step: int, values: Mapping[str, float]) -> None:
        # In its file store a name is a path, and `val/findings_f1` cannot also be the folder of `val/findings_f1/side`.
        parts = {name: name.split("/") for name in values}
        self.log({f"{parts[name][0]}/{'.'.join(parts[name][1:])}": value for name, value in values.items()}, step=step)

    def end(self, *, failed: bool) -> None:
        self.mlflow.end_run("FAILED" if failed else "FINISHED")
        if self.has_own_store:  # also a variable of the environment, which another run would inherit
            self.mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


class _WandB(WandBTracker):  # type: ignore[misc]
    """A run of the project `WANDB_PROJECT`; with `WANDB_MODE=offline` in files of the run's folder."""

    def __init__(self, run: Path, root: Path, run_id: str | None) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            console="off",  # which shows reports
            disable_code=True,
            disable_git=True,
            quiet=True,
            x_disable_machine_info=True,
            x_disable_meta=True,  # user, host and command
            x_save_requirements=False,
        )
        resumes: dict[str, Any] = {} if run_id is None else {"id": run_id, "resume": "allow"}
        super().__init__(
            os.environ.get("WANDB_PROJECT", PROJECT), name=_title(run), dir=str(run), settings=settings, **resumes
        )
        self.start()
        self.run.define_metric("*", step_metric="step")  # its own count of steps cannot go back when a run resumes
        self.id = self.run.id
        self.hint = f"wandb sync {run / 'wandb' / 'offline-run-*'}" if self.run.settings.mode == "offline" else ""
        self.hint = self.hint or str(self.run.url)

    def send(self, step: int, values: Mapping[str, float]) -> None:
        self.log({**values, "step": step})

    def end(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


CLASSES: dict[str, type[_Tracker]] = {"mlflow": _MLflow, "wandb": _WandB}


class Trackers:
    """The runs in the trackers of a recipe, continued if this one is resumed. On the main process only.

    Args:
        run: the run's folder.
        sent: records (step, name) that were sent before the run resumed; they are not sent again.

    Raises:
        UserError: a tracker refuses the run.
    """

    def __init__(
        self, recipe: Recipe, run: Path, launch: Mapping[str, Any], sent: Collection[tuple[int, str]] = ()
    ) -> None:
        path = run / IDS
        before = read_object(path, "Delete it: the run gets new ones in its trackers.") if path.is_file() else {}
        self.sent = {name: set(sent) for name in before}
        self.trackers: dict[str, _Tracker] = {}
        for name in (name for name in recipe.run.trackers if name in CLASSES):
            try:
                tracker = CLASSES[name](run, Path(recipe.run.root).absolute(), before.get(name))  # type: ignore[call-arg]
                if name not in before:
                    tracker.store_init_configuration(tracked_config(recipe, launch))
            except Stopped:
                raise
            except Exception as error:
                raise UserError(
                    "external-program", f"{name}: {first_line(error)}", place="run.trackers", hint=REFUSED[name]
                ) from error
            self.trackers[name] = tracker
        if self.trackers:
            ids = {name: tracker.id for name, tracker in self.trackers.items()}
            atomic_write(path, json.dumps({**before, **ids}, indent=1))

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Sends numbers. A tracker that fails receives no more, since training goes on without it."""
        for name, tracker in list(self.trackers.items()):
            sent = self.sent.get(name, ())
            new = {key: value for key, value in values.items() if (step, key) not in sent}
            try:
                if new:
                    tracker.send(step, new)
            except Exception as error:
                print0(f"warning: {name}: {first_line(error)}. It receives no more values; metrics.jsonl has them all")
                del self.trackers[name]

    @property
    def hints(self) -> list[str]:
        """How to look at the run in each tracker."""
        return [tracker.hint for tracker in self.trackers.values()]

    def close(self, *, failed: bool) -> None:
        for name, tracker in self.trackers.items():
            try:
                tracker.end(failed=failed)
            except Exception as error:
                print0(f"warning: {name}: {first_line(error)}")


REFUSED = {
    "mlflow": f"Check {STORE}, or unset it: the run is then stored in files.",
    "wandb": "Run `wandb login`, or set WANDB_MODE=offline and send the run later with `wandb sync`.",
}


def _title(run: Path) -> str:
    """The run's name in the trackers: its recipe and its folder."""
    return f"{run.parent.name}/{run.name}"
