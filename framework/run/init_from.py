"""Initial weights from another run: its encoder and decoder, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Size, Tensor

from framework.build import RunComponents, build_tokenizer
from framework.checkpoint.export import MANIFEST, PARTS, WEIGHTS, read_weights, require_finite, verify_model
from framework.checkpoint.format import (
    CheckpointError,
    checkpoints_of,
    read_train_state,
    verify_checkpoint,
)
from framework.data.leakage import require_unseen
from framework.data.loading import ExamSet
from framework.distributed.collectives import on_main
from framework.models.external_weights import require_same_weights, unsaved_names
from framework.optim import longest_prefix, nearest_part, parameters_by_names
from framework.recipe import Recipe, load_saved_recipe
from framework.registry import find
from framework.registry.trust import require_trusted
from framework.run.folder import OpenedRun
from framework.runtime.console import print0
from framework.runtime.errors import UserError
from framework.runtime.files import digest
from framework.task import ReportTask

SHOWN = 4  # tensors of each reason in a message


@dataclass(frozen=True)
class Source:
    """A model to start from, with step and monitor of its validation if they are known."""

    model: Path
    step: int | None
    score: float | None


def find_initial_weights(accelerator: Accelerator, recipe: Recipe, opened: OpenedRun) -> Source | None:
    """The model that a run starts from, the same on every process; None if it starts from scratch or resumes."""
    folder = recipe.init_from
    return None if folder is None or opened.checkpoint else on_main(accelerator, lambda: find_source(folder))


def initial_weights(
    accelerator: Accelerator, recipe: Recipe, components: RunComponents, opened: OpenedRun, source: Source | None
) -> dict[str, Any]:
    """Loads the source's weights on the main process, from which `prepare` broadcasts them.

    Returns:
        the entry `init_from` of environment.json; a resumed run keeps its own.
    """
    if source is not None:
        task, tokenizer, exams = components.task, components.tokenizer, components.exams
        load = lambda: load_initial_weights(source, recipe, task, tokenizer, exams)  # noqa: E731
        return {"init_from": on_main(accelerator, load)}
    before = {} if opened.train_state is None else opened.train_state.launch
    return {key: value for key, value in before.items() if key == "init_from"}


def find_source(named: str) -> Source:
    """The best model of a run, or the model of a checkpoint.

    Args:
        named: the folder of the run or of the checkpoint.

    Raises:
        UserError: it is neither, or damaged.
    """
    folder = Path(named)
    if (folder / MANIFEST).is_file() and not (folder / WEIGHTS).is_file():
        if problem := verify_checkpoint(folder):
            raise CheckpointError.of([problem])
        _require_trusted_tokenizer(folder / "model")
        train_state = read_train_state(folder)
        step = train_state.step  # not of the name: a copy may have another
        return Source(folder / "model", step, train_state.val_scores.get(f"step-{step}"))
    if not (folder / "model" / WEIGHTS).is_file():
        raise UserError(
            "no-model",
            f"found no model and no checkpoint in {folder}",
            place="init_from",
            expected="RUN, such as runs/breast/20260101-120000-ab12cd34, or RUN/checkpoints/step-N",
        )
    verify_model(folder / "model")
    _require_trusted_tokenizer(folder / "model")
    try:  # step and score are only printed
        train_state = read_train_state(checkpoints_of(folder / "checkpoints")[0])
    except (IndexError, OSError, ValueError, TypeError, AttributeError):  # missing, damaged, or another format
        return Source(folder / "model", None, None)
    return Source(folder / "model", train_state.best_step, train_state.best_score)


def _require_trusted_tokenizer(model: Path) -> None:
    """Raises `untrusted-code` before images are decoded; of the source's plugins only the tokenizer is imported."""
    recipe = load_saved_recipe(model / "recipe.yaml")
    require_trusted(find("tokenizer", recipe.data.tokenizer.name, recipe.plugin_files).path)


def load_initial_weights(
    source: Source, recipe: Recipe, task: ReportTask, tokenizer: Any, exams: Mapping[str, ExamSet]
) -> dict[str, Any]:
    """Loads the source's encoder and decoder into a task, with the running statistics of batch normalization.

    Losses and their parameters keep their random initialization, as does the decoder if that of the source is random
    itself. Called on the main process.

    Returns:
        what is stored with the run: path, hash, step, score, data set, numbers of tensors and parameters.

    Raises:
        UserError: `init_exclude` has a prefix that neither model has; tensors that are not excluded are missing,
            unknown, or belong to another shape or vocabulary, all listed at once; or the source was trained on patients
            of val or test.
    """
    before = load_saved_recipe(source.model / "recipe.yaml")
    require_unseen("init_from", source.model, before, recipe, exams)
    theirs = read_weights(source.model)
    ours = {name: value for name, value in task.state_dict().items() if name.startswith(PARTS)}
    names = [*ours, *theirs]
    _require_known(recipe.init_exclude, names)
    prefixes = list(dict.fromkeys([*recipe.init_exclude, *(["decoder"] if before.has_random_decoder else [])]))
    excluded = _excluded(names, prefixes, task)
    settings = _settings(task)
    theirs, ours = ({n: value for n, value in tensors.items() if n not in settings} for tensors in (theirs, ours))
    vocabulary = build_tokenizer(before, [], source.model)
    of_words = [name for name in _word_tensors(theirs, ours, vocabulary, tokenizer) if name not in excluded]
    theirs, kept = ({n: value for n, value in tensors.items() if n not in excluded} for tensors in (theirs, ours))
    misfits = _misfits(theirs, kept, unsaved_names(task), {_other_words(vocabulary, tokenizer): of_words})
    _require_fit(source, misfits, names)
    parts = list(dict.fromkeys(name.partition(".")[0] for name in kept))  # an excluded part may have any weights
    for part in parts:
        require_same_weights(source.model, task, part)
    if not theirs:
        raise UserError(
            "ignored-setting",
            f"init_exclude excludes every tensor of {source.model}",
            place="init_exclude",
            hint="Remove init_from, or exclude fewer parts.",
        )
    _print_other_keys(source, before, recipe, parts)
    require_finite(theirs, dict(task.named_parameters(remove_duplicate=False)), source.model)
    task.load_state_dict(theirs, strict=False)
    weights = {id(each): each for name, each in task.named_parameters(remove_duplicate=False) if name in theirs}
    count = sum(each.numel() for each in weights.values())
    step = "" if source.step is None else f", step {source.step}"
    score = "" if source.score is None else f" ({before.evaluate.monitor_words} {source.score:.4f})"
    fresh = f"; random: {', '.join(prefixes)}" if prefixes else ""
    fresh += " (not trained there)" if before.has_random_decoder else ""
    print0(
        f"initial weights: {source.model}{step}{score}, {len(theirs)} tensors, {count / 1e6:.2f} M parameters{fresh}"
    )
    return {
        "model": str(source.model.resolve()),
        "sha256": digest(source.model / WEIGHTS),
        "step": source.step,
        "score": source.score,
        "dataset": {"name": before.data.dataset.name, **before.data.dataset.keys},
        "tensors": len(theirs),
        "parameters": count,
    }


def _excluded(names: Iterable[str], prefixes: Sequence[str], task: ReportTask) -> set[str]:
    """Names below a prefix; a tied weight is excluded by any of its names."""
    aliases = {name: every for every, _ in parameters_by_names(task) for name in every}
    return {name for name in names if any(longest_prefix(each, prefixes) for each in aliases.get(name, [name]))}


def _settings(task: ReportTask) -> set[str]:
    """Names of the buffers that follow from this run's recipe and tokenizer, which keep their values."""
    return {f"{part}.{name}" for part, module in task.named_children() for name in getattr(module, "settings", ())}


def _print_other_keys(source: Source, before: Recipe, recipe: Recipe, parts: Sequence[str]) -> None:
    """Prints keys that differ although all shapes fit: eight heads have the shapes of two.

    This is a notice, not an error: only the plugin knows which keys matter for training alone, such as dropout.
    """
    words = []
    for part in parts:
        theirs, ours = ({"name": c.name, **c.keys} for c in (getattr(r.model, part) for r in (before, recipe)))
        keys = ["name"] if theirs["name"] != ours["name"] else list(dict.fromkeys([*theirs, *ours]))
        words += [
            f"model.{part}.{key} was {theirs.get(key)!r}, now {ours.get(key)!r}"
            for key in keys
            if theirs.get(key) != ours.get(key)
        ]
    if words:
        print0(
            f"notice: init_from: {source.model} was trained with other keys: {'; '.join(words)}. Its tensors fit; "
            "check that they mean the same"
        )


def _require_known(prefixes: Sequence[str], names: Sequence[str]) -> None:
    for prefix in prefixes:
        if not any(longest_prefix(name, [prefix]) for name in names):
            raise UserError(
                "unknown-name",
                f"no parameter of either model starts with '{prefix}'",
                place="init_exclude",
                hint=nearest_part(prefix, names).strip(),
            )


def _misfits(
    theirs: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    unsaved: frozenset[str],
    known: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, str]]:
    """Reason -> tensors that do not fit, each with details for the message.

    Args:
        known: reason -> names that do not fit whatever their shape.
    """
    both = [name for name in ours if name in theirs]
    of_words = {name for names in known.values() for name in names}
    found = {
        **{reason: dict.fromkeys(names, "") for reason, names in known.items()},
        "have other shapes": {
            name: f" ({_shape(theirs[name].shape)} there, {_shape(ours[name].shape)} here)"
            for name in both
            if theirs[name].shape != ours[name].shape and name not in of_words
        },
        "are missing there": dict.fromkeys((n for n in ours if n not in theirs and n not in unsaved), ""),
        "are unknown here": dict.fromkeys((n for n in theirs if n not in ours), ""),
        "are frozen external weights here, read from model.*.weights (set frozen_stages or the like to 0, and name "
        "them in train.freeze)": dict.fromkeys((n for n in both if n in unsaved), ""),
    }
    return {reason: names for reason, names in found.items() if names}


def _word_tensors(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], words: Any, tokenizer: Any) -> list[str]:
    """If the vocabularies differ: the decoder's tensors with a dimension of the vocabulary's size; all if none has."""
    if list(words.vocabulary) == list(tokenizer.vocabulary):
        return []
    decoder = [name for name in ours if name in theirs and name.startswith("decoder.")]
    sized = [name for name in decoder if len(words) in theirs[name].shape or len(tokenizer) in ours[name].shape]
    return sized or decoder


def _other_words(words: Any, tokenizer: Any) -> str:
    differing = len(set(words.vocabulary) ^ set(tokenizer.vocabulary))
    how = f"{differing} words are in one only" if differing else "in another order"
    return f"belong to other words (vocabularies of {len(words)} there and {len(tokenizer)} here, {how})"


def _require_fit(source: Source, misfits: Mapping[str, Mapping[str, str]], names: Iterable[str]) -> None:
    if not misfits:
        return
    reasons = []
    for reason, found in misfits.items():
        listed = ", ".join(f"{name}{details}" for name, details in list(found.items())[:SHOWN])
        reasons.append(f"{len(found)} {reason}: {listed}{', ...' if len(found) > SHOWN else ''}")
    wrong = {name for found in misfits.values() for name in found}
    raise UserError(
        "does-not-fit",
        f"of the tensors of {source.model}, {'; '.join(reasons)}",
        place="init_from",
        hint=f"Use the data and model of {source.model / 'recipe.yaml'}, or keep random initial weights for these "
        f"parts: 'init_exclude=[{', '.join(_shortest_prefixes(wrong, names))}]'.",
    )


def _shortest_prefixes(wrong: set[str], names: Iterable[str]) -> list[str]:
    """The shortest prefixes that cover all of `wrong` and no other name."""
    right, found = [name for name in names if name not in wrong], []
    for name in sorted(wrong):
        words = name.split(".")
        prefixes = (".".join(words[:depth]) for depth in range(1, len(words) + 1))
        found.append(next(p for p in prefixes if not any(longest_prefix(other, [p]) for other in right)))
    return list(dict.fromkeys(found))


def _shape(shape: Size) -> str:
    return " x ".join(map(str, shape)) or "a number"
