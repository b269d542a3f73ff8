"""Checkpoints that are whole or not there: written under another name, listed with their hashes, renamed, then pruned.

    checkpoints/
      step-N/
        manifest.json         size and SHA-256 of every other file
        trainer.json          how far the run was, and under which recipe
        training.safetensors  weights, running average, buffers and optimizer state, whole, by the names of the task
        model/                what `predict` needs: weights, tokenizer, recipe
      latest  best            the name of one of them

One form for every strategy and any number of processes, without pickles, which could carry code. Random numbers are not
in it: they are drawn anew in every step, from the seed, the step and the process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from framework.checkpoint.export import ModelTexts, publish_model, write_model
from framework.runtime.files import atomic_write, digest, sync_file, sync_folder

# safetensors' names of number formats.
FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FORM = 2  # raise it when a checkpoint of before can no longer be read


@dataclass
class TrainState:
    """How far a run is, and what it has reached. Everything that resuming needs beside the tensors."""

    step: int = 0  # updates tried
    epoch: int = 0
    step_in_epoch: int = 0
    updates: int = 0  # updates made, which are fewer where steps were skipped
    skipped: int = 0  # steps whose loss or gradient was not finite
    best: float | None = None
    best_step: int | None = None
    worse: int = 0  # validations since the best one
    kept: dict[str, float] = field(default_factory=dict)  # checkpoint name -> monitored value
    recipe: dict[str, Any] = field(default_factory=dict)  # what may change the result, see recipe.result_tree
    launch: dict[str, Any] = field(default_factory=dict)  # processes, strategy, precision
    scaler: dict[str, float] = field(default_factory=dict)  # of fp16


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another recipe."""


@dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints stay."""

    last: int
    best: int
    best_is_higher: bool


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is written from; nothing of it changes any more."""

    train_state: TrainState
    state: dict[str, Tensor]
    weights: dict[str, Tensor]  # of the task, for the exported model
    texts: ModelTexts


def write_checkpoint(folder: Path, snapshot: Snapshot, keep: RetentionPolicy) -> Path:
    """Writes `folder/step-N`, moves the pointers, publishes the model if it is the best, and only then prunes."""
    train_state = snapshot.train_state
    final = folder / f"step-{train_state.step}"
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(snapshot.state, part / "training.safetensors")
    write_model(part / "model", snapshot.weights, snapshot.texts)
    told = {"form": FORM, **asdict(train_state)}
    (part / "trainer.json").write_text(json.dumps(told, ensure_ascii=False, indent=1), encoding="utf-8")
    files = [path for path in sorted(part.rglob("*")) if path.is_file()]
    manifest = {path.relative_to(part).as_posix(): [path.stat().st_size, digest(path)] for path in files}
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*files, part / "manifest.json"]:
        sync_file(path)
    for inner in (part / "model", part):
        sync_folder(inner)
    if final.exists():  # it was damaged, or is of before a validation
        before = folder / f".{final.name}.before"
        shutil.rmtree(before, ignore_errors=True)
        final.replace(before)
        part.replace(final)
        shutil.rmtree(before)
    else:
        part.replace(final)
    sync_folder(folder)
    atomic_write(folder / "latest", final.name + "\n")
    if train_state.best_step == train_state.step:
        atomic_write(folder / "best", final.name + "\n")
        publish_model(final / "model", folder.parent / "model")
    _prune(folder, train_state, keep)
    return final


def checkpoints_of(folder: Path) -> list[Path]:
    """Those that were finished, the newest first; their bytes are not looked at."""
    named = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted((path for path in named if (path / "manifest.json").is_file()), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def ranked(train_state: TrainState, best_is_higher: bool) -> list[str]:
    """The checkpoints that were validated, the best first; of equals the earlier."""
    return sorted(train_state.kept, key=lambda name: train_state.kept[name], reverse=best_is_higher)


def _prune(folder: Path, train_state: TrainState, keep: RetentionPolicy) -> None:
    found = checkpoints_of(folder)
    there = {path.name for path in found}  # not so a better one that went while fewer were kept
    best = [name for name in ranked(train_state, keep.best_is_higher) if name in there]
    stay = {path.name for path in found[: keep.last]} | set(best[: keep.best])
    for path in found:
        if path.name not in stay:
            gone = path.with_name(f".{path.name}.part")  # under its name it is whole, or not there
            shutil.rmtree(gone, ignore_errors=True)
            path.replace(gone)
            shutil.rmtree(gone)


def clear_unfinished(folder: Path) -> None:
    """Removes what saves that broke off have left. Nobody else may be writing here."""
    for before in folder.glob(".step-*.before"):
        final = folder / before.name.removeprefix(".").removesuffix(".before")
        if not final.exists():
            before.replace(final)  # broken off between two renames: it is whole, and may be the only one
    beside = folder.parent / ".model.part", folder.parent / ".model.before"
    for left in [*folder.glob(".step-*.part"), *folder.glob(".step-*.before"), *beside]:
        shutil.rmtree(left, ignore_errors=True)
    for file in folder.glob(".*.part"):  # of a pointer
        file.unlink()


def verify_checkpoint(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if every byte is as it was written."""
    listed = checkpoint / "manifest.json"
    try:
        manifest = json.loads(listed.read_text(encoding="utf-8"))
        expected = [(checkpoint / name, int(size), str(known)) for name, (size, known) in manifest.items()]
    except FileNotFoundError:
        return f"{listed}: missing"
    except (ValueError, TypeError, AttributeError) as error:
        return f"{listed}: damaged, not the list of files that was written ({error})"
    inside = checkpoint.resolve()
    for path, size, known in expected:
        if not path.resolve().is_relative_to(inside):
            return f"{listed}: damaged, it names a file outside ({path})"
        if not path.is_file():
            return f"{path}: missing"
        if path.stat().st_size != size:
            return f"{path}: damaged, {path.stat().st_size} bytes of {size}"
        if digest(path) != known:
            return f"{path}: damaged, its SHA-256 is not the manifest's"
    if not {"trainer.json", "training.safetensors"} <= set(manifest):
        return f"{listed}: not of this version of Sonoscribe; start anew with resume=never"
    return None


def read_train_state(checkpoint: Path) -> TrainState:
    """How far the run of a checkpoint was. Its files must be verified."""
    told = json.loads((checkpoint / "trainer.json").read_text(encoding="utf-8"))
    form, known = told.pop("form", None), {item.name for item in fields(TrainState)}
    if form != FORM or set(told) != known:
        raise CheckpointError(
            f"{checkpoint}: written by another version of Sonoscribe (form {form}, this one reads {FORM}); "
            "start anew with resume=never"
        )
    return TrainState(**told)


class SavedState(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, each read when it is asked for. Its files must be verified."""

    def __init__(self, checkpoint: Path) -> None:
        path = checkpoint / "training.safetensors"
        try:
            self.file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not what was written, though its manifest says so ({error})") from None
        self.names = list(self.file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def meta_tensors(self) -> dict[str, Tensor]:
        """What each tensor is like: of its shape and number format, without values."""
        found = {}
        for name in self.names:
            kept = self.file.get_slice(name)
            found[name] = torch.empty(kept.get_shape(), dtype=FORMATS[kept.get_dtype()], device="meta")
        return found
