"""The exported model: all that `predict` and `evaluate` need of a run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from framework.models.external_weights import unsaved_names
from framework.runtime.files import sync_folder

PARTS = ("encoder.", "decoder.")  # losses and their heads stay in the checkpoints


class ModelError(ValueError):
    """An exported model that is missing, damaged, or of another recipe."""


@dataclass(frozen=True)
class ModelTexts:
    """What stands beside the weights."""

    tokenizer: Any
    recipe: str  # as YAML
    notes: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # of parts (pretrained.model_metadata) and patients


def write_model(folder: Path, weights: Mapping[str, Tensor], texts: ModelTexts) -> None:
    """Writes weights of encoder and decoder, tokenizer, recipe, and what parts are built from into a new folder.

    Args:
        weights: by their names in the task, on the CPU, no two of them sharing memory.
    """
    folder.mkdir(parents=True)
    save_file({name: value for name, value in weights.items() if name.startswith(PARTS)}, folder / "model.safetensors")
    texts.tokenizer.save(folder / "tokenizer.json")
    (folder / "recipe.yaml").write_text(texts.recipe, encoding="utf-8")
    for part, notes in texts.notes.items():
        (folder / f"{part}.json").write_text(json.dumps(notes, ensure_ascii=False), encoding="utf-8")


def publish_model(model: Path, folder: Path) -> None:
    """Puts a copy of a checkpoint's model at `folder`, in the place of the one before."""
    part, before = (folder.with_name(f".{folder.name}.{what}") for what in ("part", "before"))
    for left in (part, before):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(model, part, copy_function=_link)
    if folder.exists():
        folder.replace(before)
    part.replace(folder)
    sync_folder(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def _link(source: str, target: str) -> None:
    """The same bytes under a second name, which costs nothing; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def load_weights(folder: Path, task: nn.Module) -> None:
    """Puts an exported model's weights into a task that was built from its recipe and tokenizer."""
    put_weights(read_weights(folder), task, folder)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """An exported model's weights by their names in the task."""
    found: dict[str, Tensor] = _opened(folder, load_file)
    return found


def open_weights(folder: Path) -> Any:
    """The same as an open file, of which tensors are read one by one."""
    return _opened(folder, partial(safe_open, framework="pt"))


def _opened(folder: Path, read: Callable[[Path], Any]) -> Any:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected the folder of a run that has validated once")
    try:
        return read(path)
    except SafetensorError as error:
        raise ModelError(f"{path}: damaged ({error}); copy the run's model/ again") from None


def put_weights(weights: Mapping[str, Tensor], task: nn.Module, folder: Path) -> None:
    """Puts weights that were read from `folder` into a task; those that it fetched and that are not saved stay."""
    missing, unknown = task.load_state_dict(weights, strict=False)
    unsaved = unsaved_names(task)
    wrong = [name for name in missing if name.startswith(PARTS) and name not in unsaved] + list(unknown)
    if wrong:
        path = folder / "model.safetensors"
        raise ModelError(f"{path} does not fit its recipe; first names that differ: {', '.join(wrong[:5])}")
