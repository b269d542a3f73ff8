"""The exported model: everything that `predict` and `evaluate` need of a run, with a manifest of hashes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from framework.models.external_weights import unsaved_names
from framework.models.topic_head import write_topic_head
from framework.recipe import PortableRecipe
from framework.runtime.errors import Problem, UserError
from framework.runtime.files import digest, read_bounded, sync_file, sync_folder

WEIGHTS = "model.safetensors"
CALIBRATION = "calibration.json"  # the temperature of the confidence; added by validation
FEATURES = "features.safetensors"  # of the training images; added when training ends
MANIFEST = "manifest.json"
CARD = "README.md"  # for people, and written again when scores change, so no manifest has it
NEEDED = {WEIGHTS, "recipe.yaml", "tokenizer.json"}
READ = (".json", ".yaml", ".safetensors", ".py")  # files of a model that are read, and so must be in its manifest
COPY = "Copy the run's model/ again."
PARTS = ("encoder.", "decoder.")  # losses and their heads, but that of topics, are saved in checkpoints only


class ModelError(UserError):
    """An exported model that is missing, damaged, or of another recipe."""


@dataclass(frozen=True)
class ModelTexts:
    """The files beside the weights: tokenizer, recipe with its plugin files, and metadata of parts and patients.

    Attributes:
        card: makes the text for people from the SHA-256 of the weights.
        topic_head: the name of the head in the task, and the words of each topic; None for a task without one.
    """

    tokenizer: Any
    recipe: PortableRecipe
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    card: Callable[[str], str] | None = None
    topic_head: tuple[str, Sequence[Sequence[str]]] | None = None


def write_model(folder: Path, weights: Mapping[str, Tensor], texts: ModelTexts) -> dict[str, list[Any]]:
    """Writes weights of encoder and decoder, tokenizer, recipe and metadata to a new folder, and last the manifest.

    Args:
        weights: by their names in the task, on the CPU; no two share memory.

    Returns:
        the manifest: name -> size and SHA-256.
    """
    folder.mkdir(parents=True)
    save_file({name: value for name, value in weights.items() if name.startswith(PARTS)}, folder / WEIGHTS)
    if texts.topic_head is not None:
        name, words = texts.topic_head
        write_topic_head(folder, name, weights, words)
    texts.tokenizer.save(folder / "tokenizer.json")
    texts.recipe.write(folder)
    for part, metadata in texts.metadata.items():
        (folder / f"{part}.json").write_text(json.dumps(metadata, ensure_ascii=False), encoding="utf-8")
    manifest = write_manifest(folder)
    if texts.card is not None:
        (folder / CARD).write_text(texts.card(manifest[WEIGHTS][1]), encoding="utf-8")
    return manifest


def write_manifest(folder: Path, hashed: Mapping[str, list[Any]] = {}) -> dict[str, list[Any]]:
    """Writes sizes and hashes of all files of a folder but cards to its manifest, and returns them.

    Args:
        hashed: entries that are known already.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CARD]
    files = [path for path in files if path != folder / MANIFEST]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    manifest = {name: hashed.get(name) or [path.stat().st_size, digest(path)] for name, path in names.items()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each file that a folder's manifest names; all of them lie in the folder.

    Raises:
        ModelError: `damaged-file`.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(read_bounded(path))
        expected = {str(name): (int(size), str(sha256)) for name, (size, sha256) in manifest.items()}
    except FileNotFoundError:
        raise ModelError("damaged-file", "no such file", place=path, hint=COPY) from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("damaged-file", f"not a manifest ({error})", place=path, hint=COPY) from None
    inside = folder.resolve()
    outside = [folder / name for name in expected if not (folder / name).resolve().is_relative_to(inside)]
    if outside:
        found = "it names a file outside of its folder, {}"
        raise ModelError.of(Problem("damaged-file", found.format(each), str(path), hint=COPY) for each in outside)
    return expected


def damaged_files(folder: Path) -> list[Problem]:
    """The files of a folder that are missing, or that differ from its manifest in size or SHA-256; or what is wrong
    with the manifest.
    """
    try:
        expected = read_manifest(folder)
    except ModelError as error:
        return list(error.problems)
    found = {name: _difference(folder / name, size, sha256) for name, (size, sha256) in expected.items()}
    return [Problem("damaged-file", what, str(folder / name), hint=COPY) for name, what in found.items() if what]


def _difference(path: Path, size: int, sha256: str) -> str:
    """In what a file differs from its entry in a manifest; empty if in nothing."""
    if not path.is_file():
        return "no such file"
    if path.stat().st_size != size:
        return f"{path.stat().st_size} bytes instead of {size}"
    return "" if digest(path) == sha256 else "its SHA-256 differs from the manifest's"


def model_problems(folder: Path) -> list[Problem]:
    """What is wrong with the files of an exported model; empty if every byte is as it was written."""
    if problems := damaged_files(folder):
        return problems
    listed = set(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    files = (path for path in folder.rglob("*") if path.suffix in READ)
    there = {path.relative_to(folder).as_posix() for path in files} - {MANIFEST}
    return [
        *(Problem("damaged-file", f"lacks {n}", str(folder / MANIFEST), hint=COPY) for n in sorted(NEEDED - listed)),
        *(
            Problem("damaged-file", "the model was saved without this file", str(folder / name), hint="Remove it.")
            for name in sorted(there - listed)
        ),
    ]


def model_folder(folder: Path) -> Path:
    """The folder of an exported model, given it or the folder of its run."""
    return folder if (folder / WEIGHTS).is_file() else folder / "model"


def verify_model(folder: Path) -> None:
    """Checks every file of an exported model against its manifest. Called once wherever a model is loaded.

    Raises:
        ModelError: `no-model` if there are no weights, `damaged-file` for each file that was changed.
    """
    if not (folder / WEIGHTS).is_file() and not (folder / MANIFEST).is_file():
        runs = sorted(folder.parent.glob(f"*/model/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
        raise ModelError(
            "no-model",
            "the folder has no exported model",
            place=folder,
            expected="the folder of a run that has validated, such as runs/breast/20260101-120000-ab12cd34",
            hint=f"Did you mean '{runs[-1].parents[1]}', the newest run in it?" if runs else "",
        )
    if problems := model_problems(folder):
        raise ModelError.of(problems)


def publish_model(model: Path, folder: Path, changed: Mapping[str, bytes | None] = {}) -> None:
    """Replaces `folder` with a copy of a model.

    Only the weights are a hard link, since an edit of a small file must not reach the checkpoint.

    Args:
        changed: contents of files that are added, and None for those that are removed.
    """
    part, before = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("part", "before"))
    for remains in (part, before):
        shutil.rmtree(remains, ignore_errors=True)
    shutil.copytree(model, part, copy_function=_link)
    for name, content in changed.items():
        if content is None:
            (part / name).unlink(missing_ok=True)
        else:
            (part / name).write_bytes(content)
            sync_file(part / name)
    if changed:
        manifest = json.loads((part / MANIFEST).read_text(encoding="utf-8"))
        write_manifest(part, {name: entry for name, entry in manifest.items() if name not in changed})
        sync_file(part / MANIFEST)
    if folder.exists():
        folder.replace(before)
    part.replace(folder)
    sync_folder(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def _link(source: str, target: str) -> None:
    """Links weights, or copies them on a file system without hard links; copies other files."""
    if Path(source).name == WEIGHTS:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
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
        raise ModelError("damaged-file", str(error), place=path, hint=COPY) from None


def put_weights(weights: Mapping[str, Tensor], task: nn.Module, folder: Path) -> None:
    """Loads weights that were read from `folder` into a task, except external weights, which are not saved."""
    ours, unsaved = task.state_dict(), unsaved_names(task)
    wrong = [name for name in ours if name.startswith(PARTS) and name not in unsaved and name not in weights]
    wrong += [name for name, value in weights.items() if name not in ours or ours[name].shape != value.shape]
    if wrong:
        raise ModelError(
            "does-not-fit",
            f"the weights do not fit the recipe and vocabulary beside them; first names that differ: "
            f"{', '.join(wrong[:5])}",
            place=folder / WEIGHTS,
            hint=COPY,
        )
    task.load_state_dict(weights, strict=False)
    require_finite(weights, dict(task.named_parameters(remove_duplicate=False)), folder)


def require_finite(weights: Mapping[str, Tensor], parameters: Container[str], folder: Path) -> None:
    """Raises `non-finite` if a tensor has NaN, or a parameter infinity, which a buffer such as a mask may have."""
    wrong = [
        name
        for name, value in weights.items()
        if value.is_floating_point()
        and not (torch.isfinite(value) if name in parameters else ~torch.isnan(value)).all()
    ]
    if wrong:
        raise ModelError(
            "non-finite",
            f"NaN or infinite weights in {', '.join(wrong[:5])}{' and others' if len(wrong) > 5 else ''}",
            place=folder / WEIGHTS,
            hint="The model was trained to divergence or its file is damaged; take another checkpoint.",
        )
