"""From a recipe to the objects of a run; the only caller of the registry's `load`."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from framework.data.check import ExamWarning, check_splits, listing
from framework.data.image_cache import ImageCache, build_image_cache
from framework.data.loading import ExamSet, collate, hardest_sample
from framework.distributed.collectives import gather, main_process_first, on_main
from framework.exam import Exam, ExamSource
from framework.models.external_weights import read_metadata, require_external_weights
from framework.models.pretrained import skip_weight_loading
from framework.models.sampling import evaluating
from framework.models.views import require_view_count
from framework.optim import freeze, parameter_groups
from framework.recipe import Choice, Recipe, RecipeError, load_saved_recipe
from framework.recipe.laterality import mirrored_sides
from framework.recipe.score_names import metric_of
from framework.registry import PluginError, catalogue, find, load
from framework.registry.signature import injected_params
from framework.runtime.console import print0
from framework.scoring.reward import Reward
from framework.scoring.scorer import Scorer
from framework.task import ReportTask, Uncertainty
from framework.text.lsa import USUAL_DIMENSIONS, ReportSpace
from framework.topics.distill import Topics, distill


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of, ready to train or evaluate."""

    exams: dict[str, ExamSet]
    tokenizer: Any
    topics: Topics | None
    task: ReportTask
    augment: Any | None
    scorer: Scorer
    left_out: int  # exams with a broken view, under data.on_broken: skip


def build_plugin(recipe: Recipe, kind: str, choice: Choice, **known: Any) -> Any:
    """The plugin that a recipe names, made from its keys and from those run-time values that its signature names."""
    plugin = find(kind, choice.name, recipe.plugin_files)
    wanted = injected_params(plugin)
    absent = sorted(set(wanted) - set(known))
    if absent:
        raise PluginError(f"{kind} '{choice.name}' ({plugin.where}) needs {', '.join(absent)}, which this run has not")
    return load(plugin)(**choice.keys, **{name: known[name] for name in wanted})


def build_dataset(recipe: Recipe) -> ExamSource:
    return build_plugin(recipe, "dataset", recipe.data.dataset)


def load_exams(source: ExamSource) -> dict[str, list[Exam]]:
    """The exams of each split.

    Raises:
        ValueError: a split is empty, an exam stands twice, or two splits share a patient; all of these at once.
    """
    splits = {name: list(exams) for name, exams in source.splits().items()}
    problems = [problem for problem in check_splits(splits) if not isinstance(problem, ExamWarning)]
    if problems:
        raise ValueError(f"{len(problems)} problems of the data set\n{listing(problems)}")
    return splits


def build_tokenizer(recipe: Recipe, training_reports: Sequence[str], trained: Path | None) -> Any:
    """A tokenizer fitted on the training reports, or a trained model's own."""
    if trained is None:
        tokenizer = build_plugin(recipe, "tokenizer", recipe.data.tokenizer)
        tokenizer.fit(training_reports)
        return tokenizer
    return load(find("tokenizer", recipe.data.tokenizer.name, recipe.plugin_files)).load(trained / "tokenizer.json")


def build_distiller(recipe: Recipe, tokenizer: Any) -> Any:
    return build_plugin(recipe, "distiller", recipe.distiller, segment=tokenizer.segment, seed=recipe.train.seed)


def build_topics(
    recipe: Recipe, tokenizer: Any, texts: dict[str, list[str]], folder: Path | None
) -> tuple[Topics | None, ReportSpace]:
    """Topics of the reports, and the space in which reports are compared: the distiller's own, if it has one."""
    seed, topics = recipe.train.seed, None
    if recipe.has_topics:
        topics = distill(
            build_distiller(recipe, tokenizer),
            texts,
            folder,
            Path(recipe.data.cache_dir),
            _topics_key(recipe, tokenizer),
        )
        if topics.space is not None:
            return topics, topics.space
    space = ReportSpace(USUAL_DIMENSIONS, seed)
    space.fit([tokenizer.segment(text) for text in texts["train"]])
    return topics, space


def _topics_key(recipe: Recipe, tokenizer: Any) -> str:
    return repr(
        (recipe.distiller.name, sorted(recipe.distiller.keys.items()), recipe.train.seed, tokenizer.segmentation)
    )


def build_model(recipe: Recipe, tokenizer: Any, *, trained: bool, model: Path | None = None) -> tuple[Any, Any]:
    """Encoder and decoder. A trained model gets its weights later, so only those are fetched that it did not save.

    Args:
        model: the folder of the exported model; None: what is built is only measured.
    """
    encoder = _build_part(recipe, "encoder", trained, model, channels=recipe.data.channels)
    decoder = _build_part(
        recipe,
        "decoder",
        trained,
        model,
        vocabulary_size=len(tokenizer),
        vocabulary=tokenizer.vocabulary,
        feature_width=encoder.width,
        max_length=recipe.evaluate.max_length,
    )
    return encoder, decoder


def _build_part(recipe: Recipe, kind: str, trained: bool, model: Path | None, **known: Any) -> Any:
    choice: Choice = getattr(recipe.model, kind)
    if not trained or choice.keys.get("weights") is None:
        return build_plugin(recipe, kind, choice, **known, hf_config=None)
    notes = {} if model is None else read_metadata(model, kind)
    if "external_weights" in notes:
        require_external_weights(notes["external_weights"], f"model.{kind}.weights")
        return build_plugin(recipe, kind, choice, **known, hf_config=None)
    if model is None and "hf_config" in injected_params(find(kind, choice.name, recipe.plugin_files)):
        with skip_weight_loading():
            return build_plugin(recipe, kind, choice, **known, hf_config=None)
    without = Choice(name=choice.name, keys={**choice.keys, "weights": None})
    return build_plugin(recipe, kind, without, **known, hf_config=notes.get("hf_config"))


def build_metric(recipe: Recipe, choice: Choice, tokenizer: Any) -> Any:
    return build_plugin(recipe, "metric", choice, language=tokenizer.language)


def build_reward(recipe: Recipe, tokenizer: Any, training: Sequence[Exam], weights: Mapping[str, float]) -> Reward:
    """A reward of its own for a loss: metrics with the keys that the recipe gives them, or else their defaults."""
    chosen = {metric.name: metric for metric in recipe.evaluate.metrics}
    plugins = catalogue(recipe.plugin_files)
    name_of = {score: metric_of(score, plugins, list(chosen)).name for score in weights}
    made = {
        name: build_metric(recipe, chosen.get(name, Choice(name=name)), tokenizer)
        for name in dict.fromkeys(name_of.values())
    }
    metrics = {score: made[name] for score, name in name_of.items()}
    return Reward(weights, metrics, tokenizer, {exam.id: exam.report for exam in training})


def build_losses(
    recipe: Recipe,
    tokenizer: Any,
    feature_width: int,
    topic_count: int | None,
    word_vectors_WD: torch.Tensor,
    training: Sequence[Exam],
) -> dict[str, Any]:
    """The losses that count, by name.

    Args:
        training: the training exams; none, where a task is built for its size or speed alone.
    """
    known = {**_known_early(recipe, tokenizer, training), "feature_width": feature_width}
    known["word_vectors_WD"] = word_vectors_WD
    if topic_count is not None:
        known["topic_count"] = topic_count
    return {name: build_plugin(recipe, "loss", loss, **known) for name, loss in recipe.active_losses.items()}


def _known_early(recipe: Recipe, tokenizer: Any, training: Sequence[Exam]) -> dict[str, Any]:
    """What losses may ask for and reports alone tell."""
    known = {"vocabulary_size": len(tokenizer), "vocabulary": tokenizer.vocabulary}
    known["max_length"] = recipe.evaluate.max_length
    if training:
        known["make_reward"] = partial(build_reward, recipe, tokenizer, training)
    return known


def _try_losses(recipe: Recipe, tokenizer: Any, training: Sequence[Exam]) -> None:
    """Builds, and throws away, the losses that ask for no more than reports tell, and perhaps for word vectors.

    These are of a space in which each word points somewhere, as none is fitted yet.
    """
    known = _known_early(recipe, tokenizer, training)
    known["word_vectors_WD"] = torch.ones(len(tokenizer), USUAL_DIMENSIONS)
    for name, loss in recipe.active_losses.items():
        if set(injected_params(find("loss", name, recipe.plugin_files))) <= set(known):
            build_plugin(recipe, "loss", loss, **known)


def build_weighting(recipe: Recipe, losses: Mapping[str, Any]) -> Uncertainty | None:
    """What learns factors of the terms, where the recipe asks for it."""
    return Uncertainty(len(losses)) if recipe.train.weighting == "uncertainty" and losses else None


def build_task(
    recipe: Recipe,
    tokenizer: Any,
    topic_count: int | None,
    space: ReportSpace | None,
    *,
    training: Sequence[Exam] = (),
    trained: bool,
    model: Path | None = None,
) -> ReportTask:
    """Encoder, decoder and losses. Without `space` (for `predict`) the task has no losses.

    Args:
        model: the folder of the exported model, of one that is trained.
    """
    torch.manual_seed(recipe.train.seed)
    encoder, decoder = build_model(recipe, tokenizer, trained=trained, model=model)
    losses: dict[str, Any] = {}
    if space is not None:
        word_vectors_WD = torch.from_numpy(space.word_vectors(tokenizer.vocabulary))
        losses = build_losses(recipe, tokenizer, encoder.width, topic_count, word_vectors_WD, training)
    task = ReportTask(encoder, decoder, losses, build_weighting(recipe, losses))
    if not trained:
        freeze_parts(recipe, task)
    return task


def freeze_parts(recipe: Recipe, task: ReportTask) -> None:
    """Takes out of training what the recipe says, by name or by a rate of 0."""
    asked = recipe.optimizer
    rates = {} if asked.encoder_lr is None else {"encoder": asked.encoder_lr}
    task.frozen = freeze(task, recipe.train.freeze, {**rates, **asked.group_lrs})


def build_optimizer(recipe: Recipe, task: nn.Module) -> torch.optim.Optimizer:
    rates = recipe.optimizer
    groups = parameter_groups(task, rates.lr, rates.encoder_lr, rates.group_lrs, rates.layer_decay)
    return build_plugin(recipe, "optimizer", recipe.optimizer, groups=groups)


def build_scorer(recipe: Recipe, tokenizer: Any) -> Scorer:
    metrics = [build_metric(recipe, metric, tokenizer) for metric in recipe.evaluate.metrics]
    return Scorer(metrics, tokenizer, recipe.evaluate.weights)


def build_parts(recipe: Recipe, accelerator: Accelerator, *, run: Path | None, trained: Path | None = None) -> Parts:
    """All parts of a run. One process decodes images and finds topics first; the others read what it cached.

    Args:
        run: the folder that is told the topics; None: none is.
        trained: the folder of the exported model; None: it is still to be trained.
    """
    with main_process_first(accelerator):
        source = build_dataset(recipe)
        splits = load_exams(source)
        require_a_batch(recipe, len(splits["train"]))  # before hours of decoding, and again for what was left out
        reports = [exam.report for exam in splits["train"]]
        tokenizer = build_tokenizer(recipe, reports, trained)
        # What is refused, or lacks something, is told before the images are read.
        scorer = build_scorer(recipe, tokenizer)
        if trained is None:
            require_no_mirrored_sides(recipe, reports)
            _try_losses(recipe, tokenizer, splits["train"])
        cache, problems = build_image_cache(
            [exam for exams in splits.values() for exam in exams],
            source_key=source.cache_key,
            size=recipe.data.image_size,
            channels=recipe.data.channels,
            folder=Path(recipe.data.cache_dir),
            on_broken=recipe.data.on_broken,
        )
        splits = {name: [exam for exam in exams if exam.id in cache.rows] for name, exams in splits.items()}
        texts = {name: [exam.report for exam in exams] for name, exams in splits.items()}
        topics, space = build_topics(recipe, tokenizer, texts, run if accelerator.is_main_process else None)
    _same_everywhere(accelerator, splits)
    # The main process's on all: machines that are unlike may find others.
    topics, space = on_main(accelerator, lambda: (topics, space))
    for problem in problems:
        print0(f"left out: {problem}")
    exams = {name: _exam_set(recipe, rows, cache, tokenizer, topics, name) for name, rows in splits.items()}
    require_a_batch(recipe, len(exams["train"]))
    count = topics.count if topics else None
    task = build_task(
        recipe, tokenizer, count, space, training=splits["train"], trained=trained is not None, model=trained
    )
    if trained is None:
        _require_all_views_fit(task, exams)
    augment = None if recipe.data.augment is None else build_plugin(recipe, "augment", recipe.data.augment)
    left_out = len({problem.exam_id for problem in problems})
    return Parts(exams, tokenizer, topics, task, augment, scorer, left_out)


def require_no_mirrored_sides(recipe: Recipe, training_reports: Sequence[str]) -> None:
    augment = recipe.data.augment
    if augment is not None:
        plugin = find("augment", augment.name, recipe.plugin_files)
        if problem := mirrored_sides(plugin, augment.keys, training_reports):
            raise RecipeError.of([problem])


def _require_all_views_fit(task: ReportTask, exams: Mapping[str, ExamSet]) -> None:
    """Holds the model to the most views of all splits, which may come as late as in the scores after training.

    Raises:
        ValueError: an exam has more than the encoder takes, or than the decoder has room for.
    """
    most = {name: max(some.exams, key=lambda exam: len(exam.views)) for name, some in exams.items() if some.exams}
    split, exam = max(most.items(), key=lambda item: len(item[1].views))
    views, named = len(exam.views), f"exam {exam.id} of split {split}"
    require_view_count(named, views, getattr(task.encoder, "position_VD", None))
    if views == len(most["train"].views):
        return  # the first epoch has such an exam
    with evaluating(task), torch.no_grad():
        try:
            task.decoder.init_cache(task.features(collate([hardest_sample(exams[split])])))
        except ValueError as error:
            raise ValueError(f"{named} has {views} views, more than any of train: {error}") from error


def _same_everywhere(accelerator: Accelerator, splits: dict[str, list[Exam]]) -> None:
    """Raises ValueError on every process where one reads other exams than the main process, as a stale copy has."""
    mine = [(name, exam.id, exam.report) for name, exams in splits.items() for exam in exams]
    seen = hashlib.sha256(json.dumps(mine, ensure_ascii=False).encode()).hexdigest()
    others = [] if on_main(accelerator, lambda: seen) == seen else [f"{socket.gethostname()} ({len(mine)} exams)"]
    if differing := sorted(set(gather(accelerator, others))):
        expected = on_main(accelerator, lambda: len(mine))
        raise ValueError(
            f"these machines read other exams than the main process, which has {expected}: "
            f"{', '.join(differing)}. Copy the data anew; with data.on_broken: skip, look for images broken there"
        )


def require_a_batch(recipe: Recipe, training_exams: int) -> None:
    if training_exams < recipe.train.batch_size:
        raise RecipeError(
            f"train.batch_size: {recipe.train.batch_size} is more than the {training_exams} training exams"
        )


def _exam_set(
    recipe: Recipe, exams: list[Exam], cache: ImageCache, tokenizer: Any, topics: Topics | None, split: str
) -> ExamSet:
    tokens = [tokenizer.encode(exam.report, recipe.evaluate.max_length) for exam in exams]
    if topics is None:
        return ExamSet(exams, cache, tokens, None)
    return ExamSet(exams, cache, tokens, topics.labels[split], topics.weights[split])


def run_recipe(run: Path) -> Recipe:
    """The recipe that a run's exported model was trained with."""
    path = run / "model" / "recipe.yaml"
    if not path.is_file():
        raise ValueError(
            f"{run}: not a run with a model (no {path}). Expected a folder such as runs/breast/20260101-120000-ab12cd34"
        )
    return load_saved_recipe(path)
