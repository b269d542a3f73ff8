"""Which models of a run write its reports: the best one, the average of several checkpoints, or several together."""

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
from framework.models.ensemble import Ensemble
from framework.recipe import Choice, Recipe, load_saved_recipe
from framework.recipe.score_names import higher_is_better


@dataclass(frozen=True)
class ModelSelection:
    """What is asked for. What is asked of the run is asked of each of the others too.

    Attributes:
        average: best checkpoints whose weights are averaged; 1: the best is taken as it is.
        ensemble: best checkpoints that write together.
        others: runs whose models write together with the run's.
    """

    average: int = 1
    ensemble: int = 1
    others: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.average > 1 and self.ensemble > 1:
            raise ValueError(
                "--average and --ensemble: choose one; the first makes one model of several, the second none"
            )

    @property
    def label(self) -> str:
        """What is put behind the names of files, so that the run's own scores stay; empty for its best model alone."""
        words = [f"average-{self.average}"] if self.average > 1 else []
        words += [f"ensemble-{self.ensemble}"] if self.ensemble > 1 else []
        return "-".join([*words, *(f"with-{run.resolve().parent.name}-{run.resolve().name}" for run in self.others)])


BEST = ModelSelection()  # the run's best model, by itself


def load_models(
    run: Path, recipe: Recipe, tokenizer: Any, asked: ModelSelection, task: Any | None = None
) -> tuple[Any, list[str]]:
    """A task, or what stands in its place, with weights; and what it was made of, one line a model that writes.

    Args:
        task: of the run's recipe, whose weights may be overwritten; None: one is built.

    Raises:
        ValueError: a run lacks what is asked of it, or its models do not write with the run's words and images.
        CheckpointError: a checkpoint is damaged.
    """
    tasks, told = _of_run(run, recipe, tokenizer, asked, task)
    for other in asked.others:
        theirs = run_recipe(other)
        words = build_tokenizer(theirs, [], other / "model")
        _write_alike(run, recipe, tokenizer, other, theirs, words)
        more, lines = _of_run(other, theirs, words, asked, None)
        tasks += more
        told += lines
    return (tasks[0] if len(tasks) == 1 else Ensemble(tasks)), told


def _of_run(
    run: Path, recipe: Recipe, tokenizer: Any, asked: ModelSelection, task: Any | None
) -> tuple[list[Any], list[str]]:
    """The models of one run that write, and a line on each."""
    count = max(asked.average, asked.ensemble)
    if count == 1:
        groups, told = [[run / "model"]], [str(run / "model")]
    else:
        found = best_checkpoints(run, count, "--average" if asked.average > 1 else "--ensemble")
        models = [checkpoint / "model" for checkpoint in found]
        names = [f"{checkpoint} ({value:.4f})" for checkpoint, value in found.items()]
        groups, told = ([models], [", ".join(names)]) if asked.average > 1 else ([[model] for model in models], names)
    tasks = [task or build_task(recipe, tokenizer, None, None, trained=True, model=groups[0][0])]
    tasks += [build_task(recipe, tokenizer, None, None, trained=True, model=group[0]) for group in groups[1:]]
    for each, models in zip(tasks, groups):
        put_weights(average(models), each, models[0])
    return tasks, told


def best_checkpoints(run: Path, count: int, option: str) -> dict[Path, float]:
    """The `count` best checkpoints that a run keeps, the best first, and what each scored on validation.

    Raises:
        ValueError: the run does not keep so many.
        CheckpointError: one of them is damaged.
    """
    found = checkpoints_of(run / "checkpoints")
    if not found:
        raise ValueError(f"{option}: {run} has no checkpoints, which this needs; its model alone is not enough")
    newest = found[0]
    if problem := verify_checkpoint(newest):
        raise CheckpointError.of([problem])
    recipe = load_saved_recipe(newest / "model" / "recipe.yaml")
    train_state = read_train_state(newest)
    known = {path.name: path for path in found}
    best = [known[name] for name in ranked(train_state, _higher_is_better(recipe, newest / "model")) if name in known]
    if (most := recipe.checkpoint.keep_best) < count:
        raise ValueError(
            f"{option}: {run} keeps its {min(most, len(best))} best checkpoints, and {count} are asked for; "
            f"train it with checkpoint.keep_best={count}"
        )
    if len(best) < count:
        raise ValueError(
            f"{option}: {run} has {len(best)} checkpoints with a score on validation, and {count} are asked for. "
            f"It has checkpoint.keep_best={most} already: train it longer, or ask for fewer"
        )
    for path in best[:count]:
        if problem := verify_checkpoint(path):
            raise CheckpointError.of([problem])
    return {path: train_state.val_scores[path.name] for path in best[:count]}


def _higher_is_better(recipe: Recipe, model: Path) -> bool:
    """Of what is monitored."""

    def build(choice: Choice) -> Any:
        return build_metric(recipe, choice, build_tokenizer(recipe, [], model))

    found = higher_is_better(recipe, [recipe.evaluate.monitored], build)
    assert found is not None, f"no metric gives {recipe.evaluate.monitored}, which the run was trained by"
    return found


def average(models: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of exported models, each weight by itself; running statistics of batch normalization too.

    What is not a floating point number, such as a count of batches, is the first model's.

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
        for name, value in first.items():  # one at a time: in float64 all would take twice the memory of a model
            if value.is_floating_point():
                total = sum((other.get_tensor(name).double() for other in others), value.double())
                first[name] = (total / len(models)).to(value.dtype)
    return first


def _write_alike(run: Path, recipe: Recipe, tokenizer: Any, other: Path, theirs: Recipe, words: Any) -> None:
    """Raises ValueError where another run's models cannot write with this one's."""
    if list(words.vocabulary) != list(tokenizer.vocabulary):
        differing = len(set(words.vocabulary) ^ set(tokenizer.vocabulary))
        raise ValueError(
            f"--with {other}: its tokenizer is not that of {run}: {len(words)} words and {len(tokenizer)}, "
            f"{differing} of them in one alone; models that write together need the same words in the same order"
        )
    images, their_images = ((r.data.image_size, r.data.channels) for r in (recipe, theirs))
    if images != their_images:
        raise ValueError(
            f"--with {other}: it looks at images of {their_images[0]} px and {their_images[1]} channels, {run} at "
            f"{images[0]} px and {images[1]}"
        )
    if theirs.evaluate.max_length < recipe.evaluate.max_length:
        raise ValueError(
            f"--with {other}: it writes at most {theirs.evaluate.max_length} tokens (evaluate.max_length), {run} up to "
            f"{recipe.evaluate.max_length}; turn the two around"
        )
