"""The models that generate a run's reports: the best one, an average of checkpoints, or an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from framework.build import build_metric, build_task, build_tokenizer, run_recipe
from framework.checkpoint.export import open_weights, put_weights, read_weights
from framework.checkpoint.format import CheckpointError, checkpoints_of, ranked, read_train_state, verify_checkpoint
from framework.models.ensemble import AugmentedCopies, Ensemble
from framework.recipe import Choice, Recipe, load_saved_recipe
from framework.recipe.score_names import higher_is_better
from framework.runtime.errors import UserError
from framework.train_step import batch_augment


@dataclass(frozen=True)
class ModelSelection:
    """The models to load; `average` and `ensemble` apply to the run and to each of `others`.

    Attributes:
        average: number of best checkpoints whose weights are averaged; 1 is the best model itself.
        ensemble: number of best checkpoints whose predictions are averaged.
        others: runs whose models join the ensemble.

    Raises:
        UserError: both `average` and `ensemble` are above 1.
    """

    average: int = 1
    ensemble: int = 1
    others: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.average > 1 and self.ensemble > 1:
            raise UserError(
                "conflicting-settings", "cannot average and ensemble at once", place="--average, --ensemble",
                hint="Choose one: --average makes one model of several, --ensemble keeps them.",
            )  # fmt: skip

    @property
    def label(self) -> str:
        """Suffix of file names, so that the run's own scores are kept; empty for the best model alone."""
        parts = [f"average-{self.average}"] if self.average > 1 else []
        parts += [f"ensemble-{self.ensemble}"] if self.ensemble > 1 else []
        return "-".join([*parts, *(f"with-{run.resolve().parent.name}-{run.resolve().name}" for run in self.others)])


BEST = ModelSelection()  # the run's best model alone


def load_models(
    run: Path, recipe: Recipe, tokenizer: Any, selection: ModelSelection, task: Any | None = None
) -> tuple[Any, list[str]]:
    """The selected models as one task or Ensemble, and a description of each model.

    Args:
        task: a task of the run's recipe, whose weights are overwritten; None builds one.

    Raises:
        UserError: a run does not have the models, or they do not fit those of the run.
        CheckpointError: a checkpoint is damaged.
    """
    tasks, descriptions = _load_from_run(run, recipe, tokenizer, selection, task)
    for other in selection.others:
        other_recipe = run_recipe(other)
        other_tokenizer = build_tokenizer(other_recipe, [], other / "model")
        _require_compatible(run, recipe, tokenizer, other, other_recipe, other_tokenizer)
        more = _load_from_run(other, other_recipe, other_tokenizer, selection, None)
        tasks += more[0]
        descriptions += more[1]
    return (tasks[0] if len(tasks) == 1 else Ensemble(tasks)), descriptions


def _load_from_run(
    run: Path, recipe: Recipe, tokenizer: Any, selection: ModelSelection, task: Any | None
) -> tuple[list[Any], list[str]]:
    """The selected models of one run, and a description of each."""
    count = max(selection.average, selection.ensemble)
    if count == 1:
        groups, descriptions = [[run / "model"]], [str(run / "model")]
    else:
        found = best_checkpoints(run, count, "--average" if selection.average > 1 else "--ensemble")
        models = [checkpoint / "model" for checkpoint in found]
        descriptions = [f"{checkpoint} ({value:.4f})" for checkpoint, value in found.items()]
        groups = [[model] for model in models]
        if selection.average > 1:
            groups, descriptions = [models], [", ".join(descriptions)]
    tasks = [task or build_task(recipe, tokenizer, None, None, trained=True, model=groups[0][0])]
    tasks += [build_task(recipe, tokenizer, None, None, trained=True, model=group[0]) for group in groups[1:]]
    for each, models in zip(tasks, groups):
        put_weights(average(models), each, models[0])
    return tasks, descriptions


def best_checkpoints(run: Path, count: int, option: str) -> dict[Path, float]:
    """The `count` best checkpoints of a run, the best first, with their scores on validation.

    Args:
        option: the command-line option that needs them, for messages.

    Raises:
        UserError: the run keeps fewer.
        CheckpointError: one of them is damaged.
    """
    found = checkpoints_of(run / "checkpoints")
    if not found:
        raise UserError("no-checkpoint", f"{run} has no checkpoints, only a model", place=option)
    newest = found[0]
    if problem := verify_checkpoint(newest):
        raise CheckpointError.of([problem])
    recipe = load_saved_recipe(newest / "model" / "recipe.yaml")
    train_state = read_train_state(newest)
    known = {path.name: path for path in found}
    best = [known[name] for name in ranked(train_state, _higher_is_better(recipe, newest / "model")) if name in known]
    if (most := recipe.checkpoint.keep_best) < count:
        raise UserError(
            "no-checkpoint", f"{run} keeps its {min(most, len(best))} best checkpoints", place=option,
            expected=str(count), hint=f"Train it with checkpoint.keep_best={count}.",
        )  # fmt: skip
    if len(best) < count:
        raise UserError(
            "no-checkpoint", f"{run} has {len(best)} checkpoints with a score on validation", place=option,
            expected=str(count), hint=f"Train it longer (it has checkpoint.keep_best={most}), or ask for fewer.",
        )  # fmt: skip
    for path in best[:count]:
        if problem := verify_checkpoint(path):
            raise CheckpointError.of([problem])
    return {path: train_state.val_scores[path.name] for path in best[:count]}


def _higher_is_better(recipe: Recipe, model: Path) -> bool:
    """Whether a higher value of the monitored score is better."""

    def build(choice: Choice) -> Any:
        return build_metric(recipe, choice, build_tokenizer(recipe, [], model))

    found = higher_is_better(recipe, [recipe.evaluate.monitored], build)
    assert found is not None, f"no metric computes {recipe.evaluate.monitored}"
    return found


def average(models: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the weights of exported models, including running statistics of batch normalization.

    Tensors that are not floating point, such as a number of batches, are the first model's.

    Source:
        Vaswani et al. 2017, arXiv 1706.03762, section 6.1 (checkpoints of one run); Wortsman et al. 2022, arXiv
        2203.05482, section 2, "uniform soup".
    """
    first = read_weights(models[0])
    if len(models) == 1:
        return first
    with ExitStack() as stack:
        others = [stack.enter_context(open_weights(model)) for model in models[1:]]
        for model, other in zip(models[1:], others):
            shapes = {name: tuple(other.get_slice(name).get_shape()) for name in other.keys()}  # noqa: SIM118
            assert shapes == {name: tuple(value.shape) for name, value in first.items()}, model
        for name, value in first.items():  # one at a time: a whole model in float64 takes twice its memory
            if value.is_floating_point():
                total = sum((other.get_tensor(name).double() for other in others), value.double())
                first[name] = (total / len(models)).to(value.dtype)
    return first


def with_augmented_copies(task: Any, augment: Any, recipe: Recipe) -> Any:
    """The task, or one that also reads `evaluate.augmented_copies` of the images.

    Args:
        augment: the augment plugin.
    """
    copies = range(1, recipe.evaluate.augmented_copies + 1)
    augments = [batch_augment(augment, recipe.train.seed, copy) for copy in copies]
    return AugmentedCopies(task, augments).eval() if augments else task


def _images_of(recipe: Recipe) -> str:
    """What a model's images are, in words."""
    data = recipe.data
    return f"images of {data.image_size} px and {data.channels} channels, with data.autocontrast {data.autocontrast}"


def _require_compatible(
    run: Path, recipe: Recipe, tokenizer: Any, other: Path, other_recipe: Recipe, other_tokenizer: Any
) -> None:
    """Raises UserError if the models of two runs cannot form an ensemble."""

    def misfit(found: str, expected: str, hint: str = "") -> UserError:
        return UserError("does-not-fit", found, place=f"--with {other}", expected=f"{expected} as {run}", hint=hint)

    if list(other_tokenizer.vocabulary) != list(tokenizer.vocabulary):
        differing = len(set(other_tokenizer.vocabulary) ^ set(tokenizer.vocabulary))
        raise misfit(
            f"a vocabulary of {len(other_tokenizer)} words, {differing} of them in one vocabulary only",
            f"the same {len(tokenizer)} words in the same order",
        )
    images, other_images = (_images_of(each) for each in (recipe, other_recipe))
    if other_images != images:
        raise misfit(other_images, images)
    if other_recipe.evaluate.max_length < recipe.evaluate.max_length:
        raise misfit(
            f"at most {other_recipe.evaluate.max_length} tokens (evaluate.max_length)",
            f"at least {recipe.evaluate.max_length}",
            "Swap the two runs.",
        )
