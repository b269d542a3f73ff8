"""Training that begins with the encoder and decoder of another run: its weights, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Size, Tensor

from framework.build import Parts, build_tokenizer
from framework.checkpoint.export import PARTS, read_weights
from framework.checkpoint.format import CheckpointError, checkpoints_of, read_train_state, step_of, verify_checkpoint
from framework.data.leakage import require_unseen
from framework.data.loading import ExamSet
from framework.distributed.collectives import on_main
from framework.models.external_weights import require_same_weights, unsaved_names
from framework.optim import longest_fitting, named_by_all, nearest_part
from framework.recipe import Recipe, load_recipe
from framework.run.folder import OpenedRun
from framework.runtime.console import print0
from framework.runtime.files import digest
from framework.task import ReportTask

SHOWN = 4  # names of a kind of misfit that are told


@dataclass(frozen=True)
class Source:
    """An exported model to begin with; `step` and `score`, of its validation, are None where nothing tells them."""

    model: Path
    step: int | None
    score: float | None


def source_of(accelerator: Accelerator, recipe: Recipe, opened: OpenedRun) -> Source | None:
    """The model that a run begins with, the same on every process; None where it begins anew, or goes on."""
    asked = recipe.init_from
    return None if asked is None or opened.checkpoint else on_main(accelerator, lambda: find_source(asked))


def begun(
    accelerator: Accelerator, recipe: Recipe, parts: Parts, opened: OpenedRun, source: Source | None
) -> dict[str, Any]:
    """Puts the source's weights in place, on the main process, from where `spread` hands them out; and notes it.

    A run that goes on keeps the note of its start.
    """
    if source is not None:
        note = on_main(
            accelerator, lambda: load_initial_weights(source, recipe, parts.task, parts.tokenizer, parts.exams)
        )
        return {"init_from": note}
    before = {} if opened.train_state is None else opened.train_state.launch
    return {key: value for key, value in before.items() if key == "init_from"}


def find_source(asked: str) -> Source:
    """The best model of a run, or the model of a checkpoint.

    Args:
        asked: the folder of one of them.

    Raises:
        ValueError: it is neither, or damaged.
    """
    folder = Path(asked)
    if (folder / "manifest.json").is_file():
        if problem := verify_checkpoint(folder):
            raise CheckpointError(f"init_from: {problem}")
        try:
            train_state = read_train_state(folder)
        except CheckpointError as error:
            raise CheckpointError(f"init_from: {error}") from None
        return Source(folder / "model", step_of(folder), train_state.kept.get(folder.name))
    if not (folder / "model" / "model.safetensors").is_file():
        raise ValueError(
            f"init_from: {folder} is no run with a model and no checkpoint; expected RUN, such as "
            "runs/breast/20260101-120000-ab12cd34, or RUN/checkpoints/step-N"
        )
    try:  # what only tells of the model; it is enough without
        train_state = read_train_state(checkpoints_of(folder / "checkpoints")[0])
    except (IndexError, OSError, ValueError, TypeError, AttributeError):  # none, damaged, or of another form
        return Source(folder / "model", None, None)
    return Source(folder / "model", train_state.best_step, train_state.best)


def load_initial_weights(
    source: Source, recipe: Recipe, task: ReportTask, tokenizer: Any, exams: Mapping[str, ExamSet]
) -> dict[str, Any]:
    """Puts the source's weights into a task. Returns what is written down of it. For the main process.

    Running statistics of batch normalization are among them; losses and what they learn begin anew.

    Raises:
        ValueError: `init_exclude` has a name that neither model has; the source lacks weights, has more, has others of
            this name, or was trained on other words, and `init_exclude` does not name these, all of it at once; or it
            has seen patients that this run is scored on.
    """
    before = load_recipe(source.model / "recipe.yaml")
    require_unseen("init_from", source.model, before, recipe, exams)
    there = read_weights(source.model)
    here = {name: value for name, value in task.state_dict().items() if name.startswith(PARTS)}
    _require_known(recipe.init_exclude, [*here, *there])
    skipped = _skipped([*here, *there], recipe.init_exclude, task)
    settings = _settings(task)
    there, here = ({n: value for n, value in tensors.items() if n not in settings} for tensors in (there, here))
    words = build_tokenizer(before, [], source.model)
    of_words = [name for name in _of_words(there, here, words, tokenizer) if name not in skipped]
    there, kept = ({n: value for n, value in tensors.items() if n not in skipped} for tensors in (there, here))
    misfits = _misfits(there, kept, unsaved_names(task), {_other_words(words, tokenizer): of_words})
    _require_fit(source, misfits, [*here, *there])
    parts = list(dict.fromkeys(name.partition(".")[0] for name in kept))  # one that is skipped may have any
    for part in parts:
        try:
            require_same_weights(source.model, task, part)
        except ValueError as error:
            raise ValueError(f"init_from: {error}. Or let the part begin anew: 'init_exclude=[{part}]'") from None
    if not there:
        raise ValueError(f"init_exclude leaves nothing of {source.model}; take init_from out, or name fewer parts")
    _say_other_keys(source, before, recipe, parts)
    task.load_state_dict(there, strict=False)
    parameters = {id(weight): weight for name, weight in task.named_parameters(remove_duplicate=False) if name in there}
    count = sum(weight.numel() for weight in parameters.values())
    of = "" if source.step is None else f" of step {source.step}"
    of += "" if source.score is None else f" ({before.evaluate.monitor_words} {source.score:.4f})"
    anew = f"; anew: {', '.join(recipe.init_exclude)}" if recipe.init_exclude else ""
    print0(f"begins with {source.model}{of}: {len(there)} tensors, {count / 1e6:.2f} M parameters{anew}")
    return {
        "model": str(source.model.resolve()),
        "sha256": digest(source.model / "model.safetensors"),
        "step": source.step,
        "score": source.score,
        "dataset": {"name": before.data.dataset.name, **before.data.dataset.keys},
        "tensors": len(there),
        "parameters": count,
    }


def _skipped(names: Iterable[str], skip: Sequence[str], task: ReportTask) -> set[str]:
    """What begins anew, of names there and here: a weight that has several, by each of them."""
    alike = {name: every for every, _ in named_by_all(task) for name in every}
    return {name for name in names if any(longest_fitting(each, skip) for each in alike.get(name, [name]))}


def _settings(task: ReportTask) -> set[str]:
    """Buffers that say what this run's keys and tokenizer say, by their names in the task: never the source's."""
    return {f"{part}.{name}" for part, module in task.named_children() for name in getattr(module, "settings", ())}


def _say_other_keys(source: Source, before: Recipe, recipe: Recipe, parts: Sequence[str]) -> None:
    """Tells keys that differ in parts that are taken over: eight heads have the shapes of two, and compute otherwise.

    No refusal: which keys are of training alone (dropout), or say where weights came from, only the plugin knows.
    """
    words = []
    for part in parts:
        theirs, ours = ({"name": c.name, **c.keys} for c in (getattr(r.model, part) for r in (before, recipe)))
        keys = ["name"] if theirs["name"] != ours["name"] else list(dict.fromkeys([*theirs, *ours]))
        words += [
            f"model.{part}.{key} ({theirs.get(key)!r} there, {ours.get(key)!r} here)"
            for key in keys
            if theirs.get(key) != ours.get(key)
        ]
    if words:
        print0(
            f"notice: init_from: {source.model} fits by its shapes, and was trained with other keys: "
            f"{', '.join(words)}. See to it that its weights mean the same under these"
        )


def _require_known(skip: Sequence[str], names: Sequence[str]) -> None:
    for prefix in skip:
        if not any(longest_fitting(name, [prefix]) for name in names):
            raise ValueError(
                f"init_exclude: neither model has parameters that begin with '{prefix}'.{nearest_part(prefix, names)}"
            )


def _misfits(
    there: Mapping[str, Tensor], here: Mapping[str, Tensor], unsaved: frozenset[str], known: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, str]]:
    """What does not fit, by the reason that is told: names of tensors, and what is told of each.

    Args:
        known: reason and names of what does not fit whatever its shape.
    """
    both = [name for name in here if name in there]
    of_words = {name for names in known.values() for name in names}
    found = {
        **{reason: dict.fromkeys(names, "") for reason, names in known.items()},
        "have other shapes": {
            name: f" ({_shape(there[name].shape)} there, {_shape(here[name].shape)} here)"
            for name in both
            if there[name].shape != here[name].shape and name not in of_words
        },
        "are missing there": dict.fromkeys((n for n in here if n not in there and n not in unsaved), ""),
        "are unknown here": dict.fromkeys((n for n in there if n not in here), ""),
        "are read from model.*.weights and not saved here, so they cannot be the source's (set frozen_stages or its "
        "like to 0, and name them in train.freeze)": dict.fromkeys((n for n in both if n in unsaved), ""),
    }
    return {reason: names for reason, names in found.items() if names}


def _of_words(there: Mapping[str, Tensor], here: Mapping[str, Tensor], words: Any, tokenizer: Any) -> list[str]:
    """Where the tokenizers have other words: the decoder's tensors that stand for them, told by a side as long as the
    vocabulary; all of the decoder, where none is.

    Args:
        there: all tensors of the source, as `here` all of this run: those that are skipped tell of the others, too.
    """
    if list(words.vocabulary) == list(tokenizer.vocabulary):
        return []
    decoder = [name for name in here if name in there and name.startswith("decoder.")]
    sized = [name for name in decoder if len(words) in there[name].shape or len(tokenizer) in here[name].shape]
    return sized or decoder


def _other_words(words: Any, tokenizer: Any) -> str:
    differing = len(set(words.vocabulary) ^ set(tokenizer.vocabulary))
    how = f"{differing} of them in one alone" if differing else "in another order"
    return f"stand for other words (the tokenizer has {len(words)} there and {len(tokenizer)} here, {how})"


def _require_fit(source: Source, misfits: Mapping[str, Mapping[str, str]], names: Iterable[str]) -> None:
    if not misfits:
        return
    lines = []
    for reason, found in misfits.items():
        told = ", ".join(f"{name}{more}" for name, more in list(found.items())[:SHOWN])
        lines.append(f"  {len(found)} {reason}: {told}{', ...' if len(found) > SHOWN else ''}")
    wrong = {name for found in misfits.values() for name in found}
    raise ValueError(
        f"init_from: {source.model} does not fit this run. Of its tensors\n" + "\n".join(lines) + "\n"
        f"Train with the data and model of {source.model / 'recipe.yaml'}, or let these parts begin anew: "
        f"'init_exclude=[{', '.join(_parts(wrong, names))}]'"
    )


def _parts(wrong: set[str], names: Iterable[str]) -> list[str]:
    """The shortest prefixes that name all of `wrong`, and nothing that is right."""
    right, found = [name for name in names if name not in wrong], []
    for name in sorted(wrong):
        words = name.split(".")
        prefixes = (".".join(words[:depth]) for depth in range(1, len(words) + 1))
        found.append(next(p for p in prefixes if not any(longest_fitting(other, [p]) for other in right)))
    return list(dict.fromkeys(found))


def _shape(shape: Size) -> str:
    return " x ".join(map(str, shape)) or "a number"
