"""Frozen weights that checkpoints leave out, because they are read from a folder of pretrained weights again.

A part (encoder or decoder) that takes `weights` may have two attributes, read by build.py, strategy.py and export.py:

    hf_config         plain values from which the part's shape was built; saved with a trained model, which is rebuilt
                      from them without the folder, as the run-time value of that name
    external_weights  `ExternalWeights`: frozen weights that equal the folder's; not saved, read from the folder again

A part may also list `settings`: buffers that follow from recipe and tokenizer. They are saved, but a run with
`init_from` keeps its own. A loss that reads frozen weights outside of its own parameters has `external_weights` without
names: a run resumes only with the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from typing_extensions import TypedDict

from framework.models.pretrained import weight_files, weights_folder
from framework.runtime.console import print0
from framework.runtime.errors import Problem, UserError
from framework.runtime.files import digest, read_object


class SavedWeights(TypedDict):
    """External weights as a saved model names them: size and SHA-256 of every file."""

    weights: str
    files: dict[str, Annotated[list[int | str], Field(min_length=2, max_length=2)]]


class PartMetadata(TypedDict, total=False):
    """`model_metadata` of the encoder or decoder."""

    hf_config: dict[str, Any]
    external_weights: SavedWeights


@dataclass(frozen=True)
class ExternalWeights:
    """Frozen weights that a part has read from a folder."""

    weights: str  # as in the recipe
    folder: Path
    names: frozenset[str]  # of parameters and buffers, in the part
    _files: dict[str, list[Any]] = field(default_factory=dict, repr=False, compare=False)

    def files(self) -> dict[str, list[Any]]:
        """Size and SHA-256 of every weight file by name; computed once."""
        if not self._files:
            self._files.update({path.name: [path.stat().st_size, digest(path)] for path in weight_files(self.folder)})
        return self._files


def external_weights_of(part: nn.Module, inner: str, weights: str, folder: Path) -> ExternalWeights | None:
    """The frozen parameters and buffers of the part's module `inner`, which was loaded from a folder; None if none."""
    module = part.get_submodule(inner)
    names = {f"{inner}.{name}" for name, w in module.named_parameters(remove_duplicate=False) if not w.requires_grad}
    for prefix, child in module.named_modules(prefix=inner):
        parameters = list(child.parameters())
        if parameters and not any(weight.requires_grad for weight in parameters):
            names |= {f"{prefix}.{name}" for name, _ in child.named_buffers()}
    names &= set(part.state_dict(keep_vars=True))
    return ExternalWeights(weights, folder, frozenset(names)) if names else None


def external_weights_in(task: nn.Module) -> dict[str, ExternalWeights]:
    """The external weights of a task's parts, by the part's name."""
    return _external_weights(task.named_children())


def _external_weights(modules: Any) -> dict[str, ExternalWeights]:
    found = {name: getattr(module, "external_weights", None) for name, module in modules}
    return {name: external for name, external in found.items() if external is not None}


def _external_weights_of_losses(task: nn.Module) -> dict[str, ExternalWeights]:
    return _external_weights(getattr(task, "losses", nn.ModuleDict()).items())


def unsaved_names(task: nn.Module) -> frozenset[str]:
    """Names in a task's state dict that are not saved."""
    parts = external_weights_in(task).items()
    return frozenset(f"{part}.{name}" for part, external in parts for name in external.names)


def model_metadata(task: nn.Module) -> dict[str, dict[str, Any]]:
    """JSON values saved beside a model's weights, from which its parts are built again; by part."""
    metadata: dict[str, dict[str, Any]] = {}
    for name, part in task.named_children():
        if (hf_config := getattr(part, "hf_config", None)) is not None:
            metadata.setdefault(name, {})["hf_config"] = hf_config
    for name, external in external_weights_in(task).items():
        metadata.setdefault(name, {})["external_weights"] = _as_json(external)
    if losses := _external_weights_of_losses(task):
        metadata["losses"] = {name: _as_json(external) for name, external in losses.items()}
    return metadata


def _as_json(external: ExternalWeights) -> dict[str, Any]:
    return {"weights": external.weights, "files": external.files()}


def read_metadata(model: Path, part: str, form: Any = PartMetadata) -> dict[str, Any]:
    """`model_metadata` of one part from an exported model's folder; {} if it has none.

    Args:
        form: the type of the metadata.

    Raises:
        UserError: `damaged-file` if the file is not JSON of this form.
    """
    path = model / f"{part}.json"
    if not path.is_file():
        return {}
    return read_object(path, "Copy the run's model/ again.", form)


def require_same_weights(model: Path, task: nn.Module, part: str | None = None) -> None:
    """Raises `weights-differ` if a task's external weights are not those that a saved model was trained with.

    Args:
        part: name of one part to check for `init_from`; None checks all parts and losses.
    """
    for name, external in external_weights_in(task).items():
        if part in (None, name) and (saved := read_metadata(model, name).get("external_weights")):
            hint = f" Or start it from random weights: 'init_exclude=[{part}]'." if part else ""
            _require_equal_files(saved["files"], external.files(), external.folder, f"model.{name}.weights", hint)
    if part is not None:
        return
    saved_losses = read_metadata(model, "losses", dict[str, SavedWeights])
    for name, external in _external_weights_of_losses(task).items():
        saved = saved_losses.get(name, {})
        if saved.get("weights") == external.weights:  # other weights are a change of the recipe, reported there
            _require_equal_files(saved["files"], external.files(), external.folder, f"losses.{name}")


def require_external_weights(saved: SavedWeights, key: str) -> None:
    """Checks that the folder of a saved model's external weights still holds the same files.

    Raises:
        UserError: `no-such-file` if the folder is gone, `weights-differ` if a file differs.
    """
    try:
        folder = weights_folder(saved["weights"], key)
    except UserError as error:
        hint = "The model was saved without these frozen weights; put them back."
        raise UserError.of(Problem(p.code, p.found, p.place, p.expected, hint) for p in error.problems) from error
    external = ExternalWeights(saved["weights"], folder, frozenset())
    sizes = {path.name: path.stat().st_size for path in weight_files(folder)}
    if sizes != {name: size for name, (size, _) in saved["files"].items()}:  # no need to compute hashes
        _require_equal_files(saved["files"], {name: [size, ""] for name, size in sizes.items()}, folder, key)
    _require_equal_files(saved["files"], external.files(), folder, key)


def _require_equal_files(
    before: dict[str, list[Any]], now: dict[str, list[Any]], folder: Path, key: str, hint: str = ""
) -> None:
    if before == now:
        return
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    raise UserError(
        "weights-differ",
        f"{folder} has other weights than the model was trained with (by size or SHA-256): {', '.join(differing[:3])}",
        place=key,
        hint=f"Put those files back; the model was saved without them.{hint}",
    )


def print_saved(task: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Prints how much of a task is saved, if not all of it."""
    unsaved = unsaved_names(task)
    if not unsaved:
        return
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    saved = sum(size for name, size in sizes.items() if name not in unsaved)
    origins = ", ".join(dict.fromkeys(external.weights for external in external_weights_in(task).values()))
    total = sum(sizes.values())
    print0(f"{saved / 1e6:.2f} M of {total / 1e6:.2f} M parameters are saved; the others are read from {origins} again")
