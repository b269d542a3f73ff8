"""The exported model: everything that `predict` and `evaluate` need of a run."""

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
from framework.runtime.errors import UserError
from framework.runtime.files import sync_folder

WEIGHTS = "model.safetensors"
PARTS = ("encoder.", "decoder.")  # losses and their heads are saved in checkpoints only


class ModelError(UserError):
    """An exported model that is missing, damaged, or of another recipe."""


@dataclass(frozen=True)
class ModelTexts:
    """The files beside the weights: tokenizer, recipe as YAML, and metadata of parts and patients."""

    tokenizer: Any
    recipe: str
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def write_model(folder: Path, weights: Mapping[str, Tensor], texts: ModelTexts) -> None:
    """Writes weights of encoder and decoder, tokenizer, recipe and metadata to a new folder.

    Args:
        weights: by their names in the task, on the CPU; no two share memory.
    """
    folder.mkdir(parents=True)
    save_file({name: value for name, value in weights.items() if name.startswith(PARTS)}, folder / WEIGHTS)
    texts.tokenizer.save(folder / "tokenizer.json")
    (folder / "recipe.yaml").write_text(texts.recipe, encoding="utf-8")
    for part, metadata in texts.metadata.items():
        (folder / f"{part}.json").write_text(json.dumps(metadata, ensure_ascii=False), encoding="utf-8")


def publish_model(model: Path, folder: Path) -> None:
    """Replaces `folder` with a copy of a checkpoint's model."""
    part, before = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("part", "before"))
    for remains in (part, before):
        shutil.rmtree(remains, ignore_errors=True)
    shutil.copytree(model, part, copy_function=_link)
    if folder.exists():
        folder.replace(before)
    part.replace(folder)
    sync_folder(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def _link(source: str, target: str) -> None:
    """Makes a hard link, or a copy on a file system without hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def load_weights(folder: Path, task: nn.Module) -> None:
    """Loads an exported model into a task that was built from its recipe and tokenizer."""
    put_weights(read_weights(folder), task, folder)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of an exported model by their names in the task."""
    weights: dict[str, Tensor] = _opened(folder, load_file)
    return weights


def open_weights(folder: Path) -> Any:
    """The weights as an open safetensors file, which reads tensors one by one."""
    return _opened(folder, partial(safe_open, framework="pt"))


def _opened(folder: Path, read: Callable[[Path], Any]) -> Any:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError("no-such-file", "no such file", place=path, expected="the folder of a run that has validated")
    try:
        return read(path)
    except SafetensorError as error:
        raise ModelError("damaged-file", str(error), place=path, hint="Copy the run's model/ again.") from None


def put_weights(weights: Mapping[str, Tensor], task: nn.Module, folder: Path) -> None:
    """Loads weights that were read from `folder` into a task, except external weights, which are not saved."""
    missing, unknown = task.load_state_dict(weights, strict=False)
    unsaved = unsaved_names(task)
    wrong = [name for name in missing if name.startswith(PARTS) and name not in unsaved] + list(unknown)
    if wrong:
        raise ModelError(
            "does-not-fit",
            f"the weights do not fit the recipe beside them; first names that differ: {', '.join(wrong[:5])}",
            place=folder / WEIGHTS,
            hint="Copy the run's model/ again.",
        )
