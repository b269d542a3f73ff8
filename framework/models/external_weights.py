"""What a run need not save: frozen weights that were fetched from a folder, which is known by its hashes.

A part (encoder or decoder) that takes `weights` may offer two attributes, which build.py, strategy.py and
exported_model.py ask for:

    blueprint   what the part's shape was read from, as plain values; a trained model is built from it again without
                the folder, which hands it over as the run-time value of that name
    fetched     `ExternalWeights`: frozen weights, equal to the folder's; they are not saved, but read there again

A part may also name `settings`: buffers that say what recipe and tokenizer say. They are saved, and a run that begins
with this model keeps its own. A loss that reads frozen weights which are no part of it offers `external_weights`
without names: a run goes on with the same ones alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.models.pretrained import folder_of, weight_files
from framework.runtime.console import print0
from framework.runtime.files import digest


@dataclass(frozen=True)
class ExternalWeights:
    """Weights that a part has read from a folder and never trains."""

    weights: str  # as the recipe says it
    folder: Path
    names: frozenset[str]  # of parameters and buffers, in the part
    _files: dict[str, list[Any]] = field(default_factory=dict, repr=False, compare=False)

    def files(self) -> dict[str, list[Any]]:
        """Size and SHA-256 of every file with weights, by name; read once."""
        if not self._files:
            self._files.update({path.name: [path.stat().st_size, digest(path)] for path in weight_files(self.folder)})
        return self._files


def external_weights_of(part: nn.Module, inner: str, weights: str, folder: Path) -> ExternalWeights | None:
    """What of a part need not be saved: the frozen weights of its module `inner`, which was read from a folder."""
    below = part.get_submodule(inner)
    names = {f"{inner}.{name}" for name, w in below.named_parameters(remove_duplicate=False) if not w.requires_grad}
    for home, module in below.named_modules(prefix=inner):
        mine = list(module.parameters())
        if mine and not any(weight.requires_grad for weight in mine):
            names |= {f"{home}.{name}" for name, _ in module.named_buffers()}
    kept = names & set(part.state_dict(keep_vars=True))
    return ExternalWeights(weights, folder, frozenset(kept)) if kept else None


def external_weights_in(task: nn.Module) -> dict[str, ExternalWeights]:
    """The parts of a task that have fetched weights, by name."""
    found = {name: getattr(part, "external_weights", None) for name, part in task.named_children()}
    return {name: external_weights for name, external_weights in found.items() if external_weights is not None}


def unsaved_names(task: nn.Module) -> frozenset[str]:
    """Names in a task of weights that are not saved."""
    return frozenset(
        f"{part}.{name}"
        for part, external_weights in external_weights_in(task).items()
        for name in external_weights.names
    )


def model_metadata(task: nn.Module) -> dict[str, dict[str, Any]]:
    """What is written beside a model's weights so that its parts can be built again: by part, where there is any."""
    found: dict[str, dict[str, Any]] = {}
    for name, part in task.named_children():
        if (hf_config := getattr(part, "hf_config", None)) is not None:
            found.setdefault(name, {})["hf_config"] = hf_config
    for name, external_weights in external_weights_in(task).items():
        found.setdefault(name, {})["external_weights"] = {
            "weights": external_weights.weights,
            "files": external_weights.files(),
        }
    if read := _read_by_losses(task):
        found["losses"] = {name: {"weights": one.weights, "files": one.files()} for name, one in read.items()}
    return found


def _read_by_losses(task: nn.Module) -> dict[str, ExternalWeights]:
    """Frozen weights that losses read and that are no part of them, by loss."""
    losses = dict(getattr(task, "losses", nn.ModuleDict()).items())
    return {
        name: loss.external_weights
        for name, loss in losses.items()
        if getattr(loss, "external_weights", None) is not None
    }


def read_metadata(model: Path, part: str) -> dict[str, Any]:
    """What `model_metadata` told of a part, from an exported model's folder; {} where there was nothing to tell."""
    path = model / f"{part}.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); copy the run's model/ again") from None
    return found if isinstance(found, dict) else {}


def require_same_weights(model: Path, task: nn.Module, part: str | None = None) -> None:
    """Raises ValueError where a task's fetched weights are not those that a saved model was trained on.

    Args:
        part: of the task that is looked at; None: all, and what losses read.
    """
    for name, external_weights in external_weights_in(task).items():
        if part in (None, name) and (told := read_metadata(model, name).get("external_weights")):
            _compare(told["files"], external_weights.files(), external_weights.folder, f"model.{name}.weights")
    before = read_metadata(model, "losses") if part is None else {}
    for name, external_weights in _read_by_losses(task).items():
        told = before.get(name, {})
        if told.get("weights") == external_weights.weights:  # another name is the recipe's to tell
            _compare(told["files"], external_weights.files(), external_weights.folder, f"losses.{name}")


def require_external_weights(told: dict[str, Any], key: str) -> None:
    """Holds the folder of weights that a model was saved without to what it was then.

    Raises:
        ValueError: it is gone, or has other bytes.
    """
    try:
        folder = folder_of(told["weights"], key)
    except ValueError as error:
        raise ValueError(
            f"{error}. The model was saved without these frozen weights; put them back where they were"
        ) from error
    found = ExternalWeights(told["weights"], folder, frozenset())
    sizes = {path.name: path.stat().st_size for path in weight_files(folder)}
    if sizes != {name: size for name, (size, _) in told["files"].items()}:
        _compare(told["files"], {name: [size, ""] for name, size in sizes.items()}, folder, key)
    _compare(told["files"], found.files(), folder, key)


def _compare(before: dict[str, list[Any]], now: dict[str, list[Any]], folder: Path, key: str) -> None:
    if before == now:
        return
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    raise ValueError(
        f"{key}: {folder} has other weights than the model was trained on (by size or SHA-256): "
        f"{', '.join(differing[:3])}. Put those files back; the model was saved without them"
    )


def print_saved(task: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """How much of a task is saved, where some of it is not.

    Args:
        shapes: of its parameters, whole, by name.
    """
    unsaved = unsaved_names(task)
    if not unsaved:
        return
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    saved = sum(size for name, size in sizes.items() if name not in unsaved)
    origins = ", ".join(
        dict.fromkeys(external_weights.weights for external_weights in external_weights_in(task).values())
    )
    whole = sum(sizes.values())
    print0(f"{saved / 1e6:.2f} M of {whole / 1e6:.2f} M parameters are saved; the others are read from {origins} again")
