"""Checkpoints, written atomically: under a temporary name, with a manifest of hashes, then renamed, then pruned.

    checkpoints/
      step-N/
        manifest.json         size and SHA-256 of every other file
        trainer.json          the TrainState
        training.safetensors  full weights, EMA, buffers and optimizer state, by their names in the task
        model/                what `predict` needs: weights, tokenizer, recipe, and a manifest of its own
      latest  best            the name of one of them

One format serves every strategy and any number of processes. It has no pickles, which can carry code. It holds no
random state: each step is seeded from the recipe's seed, the step and the process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from framework.checkpoint.export import MANIFEST, ModelTexts, damaged_files, publish_model, write_manifest, write_model
from framework.runtime.errors import Problem, UserError
from framework.runtime.files import atomic_write, checked, digest, read_object, sync_file, sync_folder

FORMAT = 3  # increases when older checkpoints can no longer be read
# safetensors' names of dtypes.
DTYPES = {
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
RETRAIN = "Copy the checkpoint again, resume from another one, or start over with resume=never."


@dataclass
class TrainState:
    """How far a run is: everything that resuming needs beside the tensors."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    skipped_steps: int = 0  # whose loss or gradient was not finite
    best_score: float | None = None  # of the monitor
    best_step: int | None = None
    validations_since_best: int = 0
    val_scores: dict[str, float] = field(default_factory=dict)  # checkpoint name -> monitor
    recipe: dict[str, Any] = field(default_factory=dict)  # the keys that can change the result, see recipe.result_tree
    launch: dict[str, Any] = field(default_factory=dict)  # processes, strategy, precision
    scaler: dict[str, float] = field(default_factory=dict)  # of fp16

    @property
    def position(self) -> tuple[int, int, int]:
        """Where the run is. An epoch that is not validated yet does not count."""
        return self.step, self.epoch, self.step_in_epoch

    def validated(self, score: float, *, higher_is_better: bool) -> None:
        """Records the monitor of the current step, and whether it is the best so far. NaN and infinity never are."""
        best = self.best_score if self.best_score is not None and math.isfinite(self.best_score) else None
        if math.isfinite(score):
            self.val_scores[f"step-{self.step}"] = score
        if math.isfinite(score) and (best is None or (score > best if higher_is_better else score < best)):
            self.best_score, self.best_step, self.validations_since_best = score, self.step, 0
        else:
            self.validations_since_best += 1


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another recipe."""


@dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints are kept: the newest, and those with the best monitor."""

    keep_last: int
    keep_best: int
    higher_is_better: bool


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is written from. Nothing in it changes while it is written."""

    train_state: TrainState
    state: dict[str, Tensor]
    weights: dict[str, Tensor]  # of the task, for the exported model
    texts: ModelTexts


def write_checkpoint(folder: Path, snapshot: Snapshot, policy: RetentionPolicy) -> Path:
    """Writes `folder/step-N`, updates the pointers, publishes the model if it is the best, and then prunes."""
    train_state = snapshot.train_state
    final = folder / f"step-{train_state.step}"
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(snapshot.state, part / "training.safetensors")
    model = write_model(part / "model", snapshot.weights, snapshot.texts)
    _share_metadata(part / "model", model, snapshot.texts.metadata, folder)
    content = {"format": FORMAT, **asdict(train_state)}
    (part / "trainer.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    manifest = write_manifest(part, {f"model/{name}": entry for name, entry in model.items()})
    for name in [*manifest, MANIFEST]:
        sync_file(part / name)
    for inner in sorted({(part / name).parent for name in manifest}, reverse=True):  # the inner ones first
        sync_folder(inner)
    if final.exists():  # damaged, or written before the validation of the same step
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
    _prune(folder, train_state, policy)
    return final


def _share_metadata(model: Path, manifest: Mapping[str, list[Any]], names: Iterable[str], folder: Path) -> None:
    """Links metadata to the equal files of the newest checkpoint: the list of 100,000 patients takes 7 MB."""
    for checkpoint in checkpoints_of(folder)[:1]:
        for file in (f"{name}.json" for name in names):
            before, linked = checkpoint / "model" / file, model / f".{file}.part"
            # Compared by content and not by manifest: a damaged file must not damage the next checkpoint.
            if before.is_file() and manifest[file] == [before.stat().st_size, digest(before)]:
                with contextlib.suppress(OSError):  # a file system without hard links
                    os.link(before, linked)
                    linked.replace(model / file)


def checkpoints_of(folder: Path) -> list[Path]:
    """Checkpoints that were written to the end, the newest first. Their files are not verified."""
    named = [path for path in folder.glob("step-*") if is_checkpoint_name(path.name)]
    return sorted((path for path in named if (path / MANIFEST).is_file()), key=step_of, reverse=True)


def is_checkpoint_name(name: str) -> bool:
    """Whether a name is step-N; copies and renamed checkpoints have others."""
    return name.startswith("step-") and name.removeprefix("step-").isdecimal()


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def ranked(train_state: TrainState, higher_is_better: bool) -> list[str]:
    """The names of validated checkpoints, the best first; of equals the earlier."""
    scores = {name: score for name, score in train_state.val_scores.items() if math.isfinite(score)}
    return sorted(scores, key=lambda name: scores[name], reverse=higher_is_better)


def _prune(folder: Path, train_state: TrainState, policy: RetentionPolicy) -> None:
    found = checkpoints_of(folder)
    names = {path.name for path in found}  # a better one may be gone, if the policy kept fewer before
    best = [name for name in ranked(train_state, policy.higher_is_better) if name in names]
    kept = {path.name for path in found[: policy.keep_last]} | set(best[: policy.keep_best])
    for path in found:
        if path.name not in kept:
            removed = path.with_name(f".{path.name}.part")  # a checkpoint is complete or has another name
            shutil.rmtree(removed, ignore_errors=True)
            path.replace(removed)
            shutil.rmtree(removed)


def clear_unfinished(folder: Path) -> None:
    """Removes the remains of interrupted saves. No other process may be writing to the folder."""
    for before in folder.glob(".step-*.before"):
        final = folder / before.name.removeprefix(".").removesuffix(".before")
        if not final.exists():
            before.replace(final)  # interrupted between two renames: it is complete, and may be the only one
    model, before = folder.parent / "model", folder.parent / ".model.before"
    if before.exists() and not model.exists():
        before.replace(model)
    beside = folder.parent / ".model.part", before
    for path in [*folder.glob(".step-*.part"), *folder.glob(".step-*.before"), *beside]:
        shutil.rmtree(path, ignore_errors=True)
    for file in folder.glob(".*.part"):  # of a pointer
        file.unlink()


def verify_checkpoint(checkpoint: Path) -> Problem | None:
    """What is wrong with a checkpoint's files; None if every byte is as it was written."""
    if problems := damaged_files(checkpoint):
        return replace(problems[0], code="damaged-checkpoint", hint=RETRAIN)
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    if not {"trainer.json", "training.safetensors", f"model/{MANIFEST}"} <= set(manifest):
        return Problem("wrong-version", "not a checkpoint of this version of Sonoscribe", str(checkpoint), hint=RETRAIN)
    return None


def read_train_state(checkpoint: Path) -> TrainState:
    """The train state of a verified checkpoint.

    Raises:
        UserError: another version of Sonoscribe wrote it, or it is damaged.
    """
    path = checkpoint / "trainer.json"
    content = read_object(path, RETRAIN)
    version, known = content.pop("format", None), {item.name for item in fields(TrainState)}
    if version != FORMAT or set(content) != known:
        raise CheckpointError(
            "wrong-version", f"format {version}", place=str(checkpoint), expected=f"format {FORMAT}", hint=RETRAIN
        )
    return checked(content, TrainState, path, RETRAIN)


class SavedState(Mapping[str, Tensor]):
    """The tensors of a verified checkpoint by name, each read when it is asked for."""

    def __init__(self, checkpoint: Path) -> None:
        path = checkpoint / "training.safetensors"
        try:
            self.file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise CheckpointError("damaged-checkpoint", str(error), place=str(path), hint=RETRAIN) from None
        self.names = list(self.file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def meta_tensors(self) -> dict[str, Tensor]:
        """Shape and dtype of every tensor, without values."""
        found = {}
        for name in self.names:
            view = self.file.get_slice(name)
            found[name] = torch.empty(view.get_shape(), dtype=DTYPES[view.get_dtype()], device="meta")
        return found
