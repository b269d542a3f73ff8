"""Writes the programs of a model to a folder, for ONNX Runtime or torch.export, and compares them with the model.

`programs.json` in the folder names files, inputs and outputs with their shapes, special tokens and preprocessing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from framework.build import build_task, build_tokenizer
from framework.checkpoint.export import load_weights, model_folder, verify_model, write_manifest
from framework.deploy.programs import (
    NEXT,
    Program,
    Shape,
    Tensors,
    decoder_programs,
    encoder_program,
    features_of,
    first_step,
    max_views,
    random_images,
    tensors_of_features,
)
from framework.exam import BOS, EOS, PAD, UNK, scaled
from framework.models.generation import NEVER, next_token_logprobs
from framework.recipe import Recipe, load_saved_recipe
from framework.registry.signature import GIVES
from framework.runtime.console import print0
from framework.runtime.errors import UserError, first_line
from framework.runtime.files import atomic_write
from framework.runtime.packages import package_versions

SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}  # by target
ABOUT = "programs.json"
FORMAT = "sonoscribe programs 1"
TOLERANCE = 1e-3  # largest difference of a logit between program and model, as a share of the largest logit, at least 1

Run = Callable[[Tensors], Tensors]


def export_model(folder: Path, target: str, out: Path) -> Path:
    """Writes the programs of a run's best model, or of an exported model, to a new folder.

    Args:
        target: `onnx` or `torch`.

    Returns:
        the file that describes the programs.

    Raises:
        UserError: the folder has no model, `out` is not empty, a package is missing; `unsupported` if a part of the
            model cannot be exported, or its program computes other values.
    """
    _require_target(target)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("file-exists", "it is not an empty folder", place=out, hint="Name a new folder.")
    model = model_folder(folder)
    verify_model(model)
    recipe = load_saved_recipe(model / "recipe.yaml")
    tokenizer = build_tokenizer(recipe, [], model)
    task = build_task(recipe, tokenizer, None, None, trained=True, model=model)
    load_weights(model, task)
    task.eval()
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with torch.no_grad(), _quiet():
            programs = _programs(recipe, task)
            runs = [_write(program, target, part) for program in programs]
            difference = _compare(recipe, task, programs, runs)
        shutil.copy(model / "tokenizer.json", part)
        atomic_write(part / "vocabulary.json", json.dumps(tokenizer.vocabulary, ensure_ascii=False))
        about = _describe(recipe, tokenizer.language, target, programs, max_views(task.encoder), difference)
        atomic_write(part / ABOUT, json.dumps(about, ensure_ascii=False, indent=1))
        write_manifest(part)
        if out.exists():
            out.rmdir()
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out / ABOUT


def _require_target(target: str) -> None:
    if target not in SUFFIX:
        raise UserError("unknown-name", f"found '{target}'", place="--to", expected=" or ".join(SUFFIX))
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if target == "onnx" and importlib.util.find_spec(package) is None:
            hint = "Run: pip install 'sonoscribe[onnx]'"
            raise UserError("missing-package", f"the package '{package}' is not installed", place="--to", hint=hint)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the exporters print neither their progress nor advice to the authors of a model."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _programs(recipe: Recipe, task: Any) -> list[Program]:
    """Encoder, prefill and step. Prints what they leave out."""
    size, channels = recipe.data.image_size, recipe.data.channels
    encoder = encoder_program(task.encoder, _gives(task.encoder), channels, size)
    if encoder.inputs["images"][-1] == size:
        print0(f"notice: the encoder takes images of {size} x {size} px only")
    if copies := recipe.evaluate.augmented_copies:
        print0(f"notice: the programs read each image once, without evaluate.augmented_copies ({copies})")
    return [encoder, *decoder_programs(task.decoder, _needs(task.decoder), task.encoder.width)]


def _gives(encoder: Any) -> Sequence[str]:
    return tuple(getattr(encoder, "gives", GIVES["encoder"]))


def _needs(decoder: Any) -> Sequence[str]:
    return tuple(getattr(decoder, "needs", ("patches",)))


def _write(program: Program, target: str, folder: Path) -> Run:
    """Writes the file of a program. Returns a function that runs this file."""
    path = folder / f"{program.name}{SUFFIX[target]}"
    if target == "torch":
        torch.export.save(program.exported, path)
        loaded: Run = torch.export.load(path).module()
        return loaded
    import onnxruntime

    try:
        converted = torch.onnx.export(
            program.exported, input_names=list(program.inputs), output_names=list(program.outputs), verbose=False
        )
        assert converted is not None
        converted.save(path)  # above 2 GB with the weights in a file beside it
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever the converter, the system or the runtime raises
        found = f"program '{program.name}' is no ONNX graph ({first_line(error.__cause__ or error)})"
        raise UserError("unsupported", found, place="--to", hint="--to torch may work.") from error

    def run(inputs: Tensors) -> Tensors:
        found = session.run(list(program.outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(program.outputs, found)}

    return run


def _compare(recipe: Recipe, task: Any, programs: Sequence[Program], runs: Sequence[Run]) -> float:
    """The largest difference of a logit.

    Raises:
        UserError: `unsupported` if it is above `TOLERANCE`, or a program fails on exams of other sizes than it was
            traced with.
    """
    try:
        difference = _largest_difference(recipe, task, programs, runs)
    except Exception as error:  # of the runtime
        raise UserError("unsupported", f"the programs fail ({first_line(error)})", place="--to") from error
    if not difference <= TOLERANCE:
        found = f"logits of the programs differ from the model's by {difference:.1e} of the largest logit"
        raise UserError("unsupported", found, place="--to", expected=f"at most {TOLERANCE:.0e}")
    return difference


def _largest_difference(recipe: Recipe, task: Any, programs: Sequence[Program], runs: Sequence[Run]) -> float:
    """Between the logits of programs and model in greedy decoding, as a share of the largest logit, at least 1.

    One exam alone, and two of which the second lacks a view.
    """
    (_, prefill, step), (encode, fill, advance) = programs, runs
    worst = torch.zeros(())
    for batch in (1, 2):
        views = min(batch, max_views(task.encoder) or batch)
        inputs = {"images": random_images(batch, views, recipe.data.channels, recipe.data.image_size)}
        inputs["view_mask"] = torch.ones(batch, views, dtype=torch.bool)
        inputs["view_mask"][1:, 1:] = False
        features = task.encoder(scaled(inputs["images"]), inputs["view_mask"])
        logits_BW, cache = first_step(task.decoder, features_of(tensors_of_features(features, _needs(task.decoder))))
        encoded = encode(inputs)
        state = fill({name: encoded[name] for name in prefill.inputs})
        finished_B = torch.zeros(batch, dtype=torch.bool)
        for _ in range(recipe.evaluate.max_length):
            share = (logits_BW - state["logits"]).abs().max() / logits_BW.abs().max().clamp(min=1)
            worst = torch.maximum(worst, share)  # NaN stays
            tokens_B = next_token_logprobs(logits_BW).argmax(-1)
            finished_B |= tokens_B == EOS
            if finished_B.all():
                break
            logits_BW, cache = task.decoder.step(tokens_B, cache)
            after = advance({name: {"tokens": tokens_B, **state}[name] for name in step.inputs})
            state |= {name.removeprefix(NEXT): tensor for name, tensor in after.items()}
    return float(worst)


def _describe(
    recipe: Recipe, language: str, target: str, programs: Sequence[Program], views: int | None, difference: float
) -> dict[str, Any]:
    """The content of `programs.json`."""
    data = recipe.data
    suffix = SUFFIX[target]
    return {
        "format": FORMAT,
        "target": target,
        "programs": {program.name: {"file": program.name + suffix, **_interface(program)} for program in programs},
        "tokens": {"bos": BOS, "eos": EOS, "pad": PAD, "unk": UNK, "never_generated": list(NEVER)},
        "max_length": recipe.evaluate.max_length,
        "vocabulary": "vocabulary.json",
        "tokenizer": "tokenizer.json",
        "language": language,
        "images": {
            "channels": "grey" if data.channels == 1 else "red, green, blue",
            "normalization": "none: bytes from 0 to 255, which the program scales and standardizes",
            "size": data.image_size,
            "resize": "bilinear into a square with the proportions kept, padded with black",
            "autocontrast": data.autocontrast,
            "max_views": views,
        },
        "largest_difference": difference,
        "versions": package_versions(["sonoscribe", "torch", "onnx", "onnxruntime", "onnxscript"]),
    }


def _interface(program: Program) -> dict[str, Any]:
    """Inputs and outputs of a program in order; `replaces` is the input of which an output is the next value."""
    return {
        "inputs": [_tensor(program, name, shape) for name, shape in program.inputs.items()],
        "outputs": [
            {**_tensor(program, name, shape), "replaces": name.removeprefix(NEXT) if name.startswith(NEXT) else None}
            for name, shape in program.outputs.items()
        ],
    }


def _tensor(program: Program, name: str, shape: Shape) -> dict[str, Any]:
    return {"name": name, "type": program.types[name], "shape": shape}
