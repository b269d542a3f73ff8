"""Checkpoints that are whole or not there, and the exported model that `predict` and `evaluate` need."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from framework.whole_file import write_whole

EXPORTED = ("encoder.", "decoder.")  # losses and their heads stay in the checkpoints


@dataclass
class Progress:
    """How far a run is, and what it has reached. Everything that resuming needs beside weights and optimizer."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best: float | None = None
    best_step: int | None = None
    worse: int = 0  # validations since the best one
    recipe: str = ""  # the recipe's hash
    kept: dict[str, float] = field(default_factory=dict)  # checkpoint name -> monitored value


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another recipe."""


def save_checkpoint(
    folder: Path,
    task: nn.Module,
    optimizer: Any,
    progress: Progress,
    keep_last: int,
    keep_best: int,
    best_is_higher: bool,
) -> Path:
    """Writes `folder/step-N`: first under another name, with sizes and hashes, then renamed; prunes afterwards."""
    final = folder / f"step-{progress.step}"
    part = folder / f".step-{progress.step}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(
        {name: value.detach().cpu().contiguous().clone() for name, value in task.state_dict().items()},
        part / "task.safetensors",
    )
    torch.save(optimizer.state_dict(), part / "optimizer.pt")
    (part / "trainer.json").write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
    manifest = {path.name: [path.stat().st_size, _digest(path)] for path in sorted(part.iterdir())}
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in part.iterdir():
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    part.replace(final)
    write_whole(folder / "latest", final.name + "\n")
    if progress.best_step == progress.step:
        write_whole(folder / "best", final.name + "\n")
    _prune(folder, progress, keep_last, keep_best, best_is_higher)
    return final


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _steps(folder: Path) -> list[int]:
    names = [path.name for path in folder.glob("step-*") if (path / "manifest.json").is_file()]
    return sorted(int(name.removeprefix("step-")) for name in names)


def _prune(folder: Path, progress: Progress, keep_last: int, keep_best: int, best_is_higher: bool) -> None:
    steps = _steps(folder)
    ranked = sorted(progress.kept, key=lambda name: progress.kept[name], reverse=best_is_higher)
    keep = {f"step-{step}" for step in steps[-keep_last:]} | set(ranked[:keep_best])
    for step in steps:
        if f"step-{step}" not in keep:
            shutil.rmtree(folder / f"step-{step}")


def latest_checkpoint(folder: Path) -> Path | None:
    steps = _steps(folder)
    return folder / f"step-{steps[-1]}" if steps else None


def load_checkpoint(checkpoint: Path, task: nn.Module, optimizer: Any, recipe_hash: str) -> Progress:
    """Puts a checkpoint's weights and optimizer state in place, after checking every file of it.

    Raises:
        CheckpointError: a file is missing or its bytes have changed, or it was trained under another recipe.
    """
    listed = checkpoint / "manifest.json"
    try:
        manifest = json.loads(listed.read_text(encoding="utf-8"))
    except ValueError as error:
        older = f"resume={checkpoint.parent}/step-N"
        raise CheckpointError(f"{listed}: damaged, not JSON ({error}); go on from an older one, {older}") from None
    for name, (size, digest) in manifest.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size or _digest(path) != digest:
            raise CheckpointError(f"{path}: missing or damaged (its size or SHA-256 is not the manifest's)")
    progress = Progress(**json.loads((checkpoint / "trainer.json").read_text(encoding="utf-8")))
    if progress.recipe != recipe_hash:
        raise CheckpointError(
            f"{checkpoint} was trained under another recipe ({progress.recipe}, this one is {recipe_hash}). "
            f"Compare {checkpoint.parent.parent / 'recipe.yaml'}; start anew with resume=never."
        )
    task.load_state_dict(load_file(checkpoint / "task.safetensors"))
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu"))
    return progress


def export_model(folder: Path, task: nn.Module, tokenizer: Any, recipe_text: str) -> None:
    """Writes what generating reports needs: weights of encoder and decoder, tokenizer, recipe."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in task.state_dict().items()
        if name.startswith(EXPORTED)
    }
    save_file(weights, part / "model.safetensors")
    tokenizer.save(part / "tokenizer.json")
    (part / "recipe.yaml").write_text(recipe_text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def load_weights(folder: Path, task: nn.Module) -> None:
    """Puts an exported model's weights into a task that was built from its recipe and tokenizer."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the folder of a run that has validated once")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy the run's model/ again") from None
    missing, unknown = task.load_state_dict(weights, strict=False)
    wrong = [name for name in missing if name.startswith(EXPORTED)] + list(unknown)
    if wrong:
        raise CheckpointError(f"{path} does not fit its recipe; first names that differ: {', '.join(wrong[:5])}")
