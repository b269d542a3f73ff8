"""Builds the objects of a run from its recipe; the only caller of the registry's `load`."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from framework.data.check import SPLITS, DatasetError, check_splits
from framework.data.image_cache import ImageCache, Images, UncachedImages, build_image_cache
from framework.data.loading import ExamSet, collate, hardest_sample
from framework.data.map_cache import build_map_cache, frozen_digest
from framework.distributed.collectives import gather, main_process_first, on_main
from framework.exam import Exam, ExamError, ExamSource
from framework.models.external_weights import read_metadata, require_external_weights
from framework.models.pretrained import skip_weight_loading
from framework.models.sampling import evaluating
from framework.models.size import TooLarge, bounded_size, require_memory, weight_bytes
from framework.models.views import require_view_count
from framework.optim import freeze, parameter_groups
from framework.recipe import Choice, Recipe, RecipeError, load_saved_recipe
from framework.recipe.laterality import mirrored_sides
from framework.recipe.merge import leaves
from framework.recipe.schema import SLOTS
from framework.recipe.score_names import metric_of
from framework.recipe.source import Key, dotted
from framework.registry import Plugin, PluginError, catalogue, find, load
from framework.registry.signature import injected_params, keys_of
from framework.runtime.console import print0
from framework.runtime.errors import Problem, UserError, first_line
from framework.runtime.files import digest
from framework.runtime.memory import is_beyond_memory, memory_bytes
from framework.scoring.baselines import Comparisons
from framework.scoring.reward import Reward
from framework.scoring.scorer import Scorer
from framework.task import ReportTask, Uncertainty
from framework.text.lsa import LSA_DIMENSIONS, ReportSpace
from framework.topics.distill import Topics, distill

OTHER = "other"  # the split of `OtherExams`, beside those that the model was trained on
EXAM_BYTES = 1_000  # of an exam without pixels, at least


@dataclass(frozen=True)
class OtherExams:
    """Exams that a trained model is scored on, of another data set than it was trained on.

    Attributes:
        recipe: the model's recipe, with the other data set.
        split: the split that is scored; the data set needs no other.
    """

    recipe: Recipe
    split: str


@dataclass(frozen=True)
class RunComponents:
    """The objects of a run, ready to train or evaluate.

    Attributes:
        exams: by split; only the scored ones of `OtherExams`.
        comparisons: baselines from the exams that the model was trained on; None if those are not here, or without
            metrics.
    """

    exams: dict[str, ExamSet]
    tokenizer: Any
    topics: Topics | None
    task: ReportTask
    augment: Any | None
    scorer: Scorer
    comparisons: Comparisons | None
    left_out: int  # exams with a broken view, under data.on_broken: skip


def build_plugin(recipe: Recipe, kind: str, choice: Choice, **values: Any) -> Any:
    """Builds the plugin that a recipe names.

    Args:
        values: run-time values; the plugin gets those that its signature names.
    """
    plugin = find(kind, choice.name, recipe.plugin_files)
    params = injected_params(plugin)
    if missing := sorted(set(params) - set(values)):
        found = f"{kind} '{choice.name}' needs {', '.join(missing)}, which this run does not have"
        raise PluginError("missing-input", found, place=plugin.where)
    cls, injected = load(plugin), {name: values[name] for name in params}
    try:
        with bounded_size():
            return cls(**choice.keys, **injected)
    except TooLarge as error:
        raise _too_large(plugin, choice, injected, str(error)) from None
    except UserError:
        raise
    except Exception as error:
        if is_beyond_memory(error):
            raise _too_large(plugin, choice, injected, "more memory than this machine provides") from error
        if not isinstance(error, ValueError):
            raise
        found = f"{kind} '{choice.name}' rejects these values ({first_line(error)})"
        hint = "SONOSCRIBE_TRACEBACK=1 shows where in the code."
        raise UserError("out-of-range", found, place=_block(kind, choice.name), hint=hint) from error


def _block(kind: str, name: str) -> str:
    """The dotted key of a plugin's block."""
    return dotted(next(slot for slot, of_kind in SLOTS.items() if of_kind == kind)).replace("*", name)


def _too_large(plugin: Plugin, choice: Choice, injected: Mapping[str, Any], needed: str) -> UserError:
    """The error of a plugin that asks for more than there is, at the key that exceeds its default the most.

    Args:
        injected: the run-time values of the plugin, which are named if no key exceeds its default.
    """
    key = _block(plugin.kind, choice.name)
    defaults = {known.name: known.default for known in keys_of(plugin)}

    def excess(leaf: tuple[Key, Any]) -> float:
        at, value = leaf
        default = defaults.get(str(at[0])) if len(at) == 1 else None
        return value / default if isinstance(default, int) and default else value

    numbers = [leaf for leaf in leaves(choice.keys) if type(leaf[1]) is int and excess(leaf) > 1]
    if not numbers:
        given = ", ".join(f"{name} {value}" for name, value in injected.items() if type(value) is int)
        return UserError("out-of-range", f"needs {needed}{given and ', for '}{given}", place=key)
    at, value = max(numbers, key=excess)
    found = f"found {value}, which needs {needed}"
    return UserError("out-of-range", found, place=dotted((key, *at)), expected="a smaller number")


def build_dataset(recipe: Recipe) -> ExamSource:
    return build_plugin(recipe, "dataset", recipe.data.dataset, cache_dir=recipe.data.cache_dir)


def load_exams(source: ExamSource, needed: Sequence[str] = SPLITS) -> dict[str, list[Exam]]:
    """The exams of each split. Prints a warning for splits that are never used.

    Args:
        needed: the splits to load.

    Raises:
        UserError: all problems at once: empty splits, duplicate ids, patients in two splits; or too many exams.
    """
    sequences, most = source.splits(), memory_bytes() // EXAM_BYTES
    for name, exams in sequences.items():
        if len(exams) > most:
            found = f"split {name} has {len(exams):,} exams, more than the memory of this machine can list"
            raise UserError("out-of-range", found, place="data.dataset", expected=f"at most {most:,}")
    splits = {name: list(exams) for name, exams in sequences.items() if name in needed or needed == SPLITS}
    checked = check_splits(splits, needed)
    if checked.errors:
        raise UserError.of(checked.errors)
    for warning in checked.warnings:
        print0(f"warning: {warning}")
    return {name: splits[name] for name in needed}


def load_reports(source: ExamSource) -> dict[str, list[str]]:
    """The reports of each split, for commands that need no images, which may not be on this machine.

    A data set may list them by a method `reports()`, as `manifest` does; otherwise it lists its exams.
    """
    if hasattr(source, "reports"):
        found = {name: list(reports) for name, reports in source.reports().items()}
        _require_exams(found, "the split has no exams")
        return found
    return {name: [exam.report for exam in exams] for name, exams in load_exams(source).items()}


def build_tokenizer(recipe: Recipe, training_reports: Sequence[str], trained: Path | None) -> Any:
    """A tokenizer fitted on the training reports, or loaded from the exported model in folder `trained`."""
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
    """Topics of the reports, and the space in which losses compare reports: the distiller's, if it has one."""
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
    space = ReportSpace(LSA_DIMENSIONS, seed)
    space.fit([tokenizer.segment(text) for text in texts["train"]])
    return topics, space


def _topics_key(recipe: Recipe, tokenizer: Any) -> str:
    return repr(
        (recipe.distiller.name, sorted(recipe.distiller.keys.items()), recipe.train.seed, tokenizer.segmentation)
    )


def build_model(recipe: Recipe, tokenizer: Any, *, trained: bool, model: Path | None = None) -> tuple[Any, Any]:
    """Encoder and decoder.

    Args:
        trained: weights of an exported model are loaded later; only those that it does not contain are loaded now.
        model: folder of the exported model; None for size estimates, which need no weights.
    """
    encoder = _build_module(recipe, "encoder", trained, model, channels=recipe.data.channels)
    decoder = _build_module(
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


def _build_module(recipe: Recipe, kind: str, trained: bool, model: Path | None, **values: Any) -> Any:
    choice: Choice = getattr(recipe.model, kind)
    if not trained or choice.keys.get("weights") is None:
        return build_plugin(recipe, kind, choice, **values, hf_config=None)
    metadata = {} if model is None else read_metadata(model, kind)
    if "external_weights" in metadata and torch.get_default_device().type != "meta":
        require_external_weights(metadata["external_weights"], f"model.{kind}.weights")
        return build_plugin(recipe, kind, choice, **values, hf_config=None)
    if model is None and "hf_config" in injected_params(find(kind, choice.name, recipe.plugin_files)):
        with skip_weight_loading():
            return build_plugin(recipe, kind, choice, **values, hf_config=None)
    without_weights = Choice(name=choice.name, keys={**choice.keys, "weights": None})
    return build_plugin(recipe, kind, without_weights, **values, hf_config=metadata.get("hf_config"))


def _require_memory(recipe: Recipe, tokenizer: Any, model: Path | None) -> int | None:
    """Checks that this machine can hold the weights of encoder and decoder, by building them on the meta device, where
    they take no memory.

    Returns:
        the width of the encoder; None if a plugin cannot be built there.

    Raises:
        UserError: `out-of-range`, with the key that makes a part large.
    """
    try:
        with torch.device("meta"):
            parts = build_model(recipe, tokenizer, trained=True, model=model)
    except UserError:
        raise
    except Exception:
        return None  # a plugin that reads values as it is built; `bounded_size` stops it
    for kind, part in zip(("encoder", "decoder"), parts):
        try:
            require_memory(weight_bytes(part), memory_bytes())
        except TooLarge as error:
            choice: Choice = getattr(recipe.model, kind)
            sizes = {"vocabulary_size": len(tokenizer)}
            raise _too_large(find(kind, choice.name, recipe.plugin_files), choice, sizes, str(error)) from None
    return int(parts[0].width)


def build_metric(recipe: Recipe, choice: Choice, tokenizer: Any) -> Any:
    return build_plugin(recipe, "metric", choice, language=tokenizer.language)


def build_reward(recipe: Recipe, tokenizer: Any, training: Sequence[Exam], weights: Mapping[str, float]) -> Reward:
    """A reward with metrics of its own: with the keys that `evaluate.metrics` gives them, or their defaults."""
    chosen = {metric.name: metric for metric in recipe.evaluate.metrics}
    plugins = catalogue(recipe.plugin_files)
    name_of = {score: metric_of(score, plugins, list(chosen)).name for score in weights}
    built = {
        name: build_metric(recipe, chosen.get(name, Choice(name=name)), tokenizer)
        for name in dict.fromkeys(name_of.values())
    }
    metrics = {score: built[name] for score, name in name_of.items()}
    return Reward(weights, metrics, tokenizer, {exam.id: exam.report for exam in training})


def build_losses(
    recipe: Recipe,
    tokenizer: Any,
    feature_width: int,
    topic_count: int | None,
    word_vectors_WD: torch.Tensor,
    training: Sequence[Exam],
) -> dict[str, Any]:
    """The losses with a weight, by name.

    Args:
        training: the training exams; empty if the task is built only to measure its size or speed.
    """
    values = {**_report_values(recipe, tokenizer, training), "feature_width": feature_width}
    values["word_vectors_WD"] = word_vectors_WD
    if topic_count is not None:
        values["topic_count"] = topic_count
    return {name: build_plugin(recipe, "loss", loss, **values) for name, loss in recipe.active_losses.items()}


def _report_values(recipe: Recipe, tokenizer: Any, training: Sequence[Exam]) -> dict[str, Any]:
    """The run-time values of losses that depend on reports only, not on topics or the model."""
    values = {"vocabulary_size": len(tokenizer), "vocabulary": tokenizer.vocabulary}
    values["max_length"] = recipe.evaluate.max_length
    if training:
        values["make_reward"] = partial(build_reward, recipe, tokenizer, training)
        values["training_reports"] = [exam.report for exam in training]
    return values


def _try_losses(recipe: Recipe, tokenizer: Any, training: Sequence[Exam], feature_width: int | None) -> None:
    """Builds the losses that need no topics, so that their errors come before images are read.

    The word vectors are placeholders, because no space is fitted yet.
    """
    values = _report_values(recipe, tokenizer, training)
    values |= {} if feature_width is None else {"feature_width": feature_width}
    values["word_vectors_WD"] = torch.ones(len(tokenizer), LSA_DIMENSIONS)
    for name, loss in recipe.active_losses.items():
        if set(injected_params(find("loss", name, recipe.plugin_files))) <= set(values):
            build_plugin(recipe, "loss", loss, **values)


def build_weighting(recipe: Recipe, losses: Mapping[str, Any]) -> Uncertainty | None:
    """The learned weights of the loss terms, if the recipe asks for them."""
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
        trained, model: see `build_model`.

    Raises:
        UserError: the decoder of the exported model was not trained.
    """
    if model is not None and recipe.has_random_decoder:
        raise UserError(
            "no-model",
            "the decoder of this model was not trained, so it writes no reports",
            place=model,
            hint=f"Train reports from its encoder: init_from={model}.",
        )
    if trained:
        _require_memory(recipe, tokenizer, model)
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


def loss_targets(task: ReportTask, reports: Sequence[str]) -> dict[str, np.ndarray]:
    """What losses with a function `targets` compute from the texts of reports, [n, ...], by loss."""
    functions = {name: getattr(loss, "targets", None) for name, loss in task.losses.items()}
    return {name: function(reports) for name, function in functions.items() if function is not None}


def freeze_parts(recipe: Recipe, task: ReportTask) -> None:
    """Freezes the parameters in `train.freeze` and those with a learning rate of 0."""
    optimizer = recipe.optimizer
    lrs = {} if optimizer.encoder_lr is None else {"encoder": optimizer.encoder_lr}
    task.frozen = freeze(task, recipe.train.freeze, {**lrs, **optimizer.group_lrs})


def build_optimizer(recipe: Recipe, task: nn.Module) -> torch.optim.Optimizer:
    keys = recipe.optimizer
    groups = parameter_groups(task, keys.lr, keys.encoder_lr, keys.group_lrs, keys.layer_decay)
    return build_plugin(recipe, "optimizer", recipe.optimizer, groups=groups)


def build_scorer(recipe: Recipe, tokenizer: Any, exams: Sequence[Exam] = ()) -> Scorer:
    metrics = [build_metric(recipe, metric, tokenizer) for metric in recipe.evaluate.metrics]
    return Scorer(metrics, tokenizer, recipe.evaluate.weights if metrics else None, exams)


def build_components(
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    run: Path | None,
    trained: Path | None = None,
    other: OtherExams | None = None,
) -> RunComponents:
    """Builds the objects of a run. One process decodes images and finds topics; the others read its caches.

    Args:
        run: where topics.json is written; None skips it.
        trained: folder of the exported model whose weights will be loaded; None for a model that will be trained.
        other: exams of another data set that a trained model is scored on, in place of those of the recipe.
    """
    with main_process_first(accelerator):
        sources = _list_exams(recipe, other)
        listed = {name: exams for _, splits in sources for name, exams in splits.items()}
        reports = [exam.report for exam in listed.get("train", ())]
        if trained is None:
            require_a_batch(recipe, len(reports))  # before images are decoded; checked again below
        tokenizer = build_tokenizer(recipe, reports, trained)
        # Checks of the recipe come before images are read. Ids of two data sets may be equal; the last one is scored.
        scorer = build_scorer(recipe, tokenizer, [exam for exams in sources[-1][1].values() for exam in exams])
        if trained is None:
            require_no_mirrored_sides(recipe, reports)
            width = _require_memory(recipe, tokenizer, None)
            _try_losses(recipe, tokenizer, listed["train"], width)
        caches, errors = _read_images(recipe, sources)
        splits = {name: [exam for exam in exams if exam.id in caches[name].rows] for name, exams in listed.items()}
        _require_exams(splits, "every exam has a broken image and is left out")
        texts = {name: [exam.report for exam in exams] for name, exams in splits.items()}
        topics, space = None, None
        if "train" in splits:
            topics, space = build_topics(recipe, tokenizer, texts, run if accelerator.is_main_process else None)
    _require_same_exams(accelerator, splits)
    # All processes use the topics of the main process, because different machines may find different ones.
    topics, space = on_main(accelerator, lambda: (topics, space))
    for error in errors:
        print0(f"left out: {error}")
    exams = {name: _exam_set(recipe, rows, caches[name], tokenizer, topics, name) for name, rows in splits.items()}
    training_order = getattr(sources[0][0], "training_order", None)
    if "train" in splits and training_order is not None:
        exams["train"].order = training_order(splits["train"])
    comparisons = None
    augment = build_augment(recipe) if trained is None or recipe.evaluate.augmented_copies else None
    if trained is None:
        require_a_batch(recipe, len(exams["train"]))
        count = topics.count if topics else None
        task = build_task(recipe, tokenizer, count, space, training=splits["train"], trained=False)
        for split in exams if not recipe.evaluate.metrics else ("train",):
            exams[split].targets = on_main(accelerator, partial(loss_targets, task, texts[split]))
        if recipe.data.cache_features:
            _cache_features(recipe, accelerator, task, exams, caches["train"])
        _require_all_views_fit(task, exams)
    else:  # without losses, whose plugins are not needed
        task = build_task(recipe, tokenizer, None, None, trained=True, model=trained)
    left_out = len({error.exam_id for error in errors})
    if "train" in exams and recipe.evaluate.metrics:
        monitored, seed = recipe.evaluate.monitored, recipe.train.seed
        comparisons = Comparisons(exams["train"], exams["val"], scorer, monitored, seed)
    scored = exams if other is None else {other.split: exams[OTHER]}
    return RunComponents(scored, tokenizer, topics, task, augment, scorer, comparisons, left_out)


def _list_exams(recipe: Recipe, other: OtherExams | None) -> list[tuple[ExamSource, dict[str, list[Exam]]]]:
    """The data set of the recipe, and after it that of `other`, whose exams are the split `OTHER`.

    With `other`, the first one may be missing: a model is also scored where its training exams are not.
    """
    found: list[tuple[ExamSource, dict[str, list[Exam]]]] = []
    try:
        own = build_dataset(recipe)
        found.append((own, load_exams(own)))
    except UserError as error:
        if other is None or error.code != "no-such-file" or isinstance(error, DatasetError):
            raise
        print0(f"notice: the model's training exams are not here, so there are no baselines: {error.problems[0].found}")
    if other is not None:
        source = build_dataset(other.recipe)
        found.append((source, {OTHER: load_exams(source, (other.split,))[other.split]}))
    return found


def _read_images(
    recipe: Recipe, sources: Sequence[tuple[ExamSource, Mapping[str, Sequence[Exam]]]]
) -> tuple[dict[str, Images], list[ExamError]]:
    """The images of each split, and the errors of exams that are left out."""
    caches: dict[str, Images] = {}
    errors: list[ExamError] = []
    data = recipe.data
    if not data.cache_images:
        for _, splits in sources:
            for name, exams in splits.items():
                views = {exam.id: exam.views for exam in exams}
                caches[name] = UncachedImages(views, data.image_size, data.channels, data.autocontrast)
        return caches, errors
    for source, splits in sources:
        cache, broken = build_image_cache(
            [exam for exams in splits.values() for exam in exams],
            source_key=source.cache_key,
            size=data.image_size,
            channels=data.channels,
            autocontrast=data.autocontrast,
            folder=Path(data.cache_dir),
            on_broken=data.on_broken,
        )
        caches |= dict.fromkeys(splits, cache)
        errors += broken
    return caches, errors


def build_exam_sets(recipe: Recipe) -> dict[str, ExamSet]:
    """The exams of each split with their images, for pages: without tokens and topics."""
    sources = _list_exams(recipe, None)
    caches, _ = _read_images(recipe, sources)
    splits = {name: exams for _, splits in sources for name, exams in splits.items()}
    return {
        name: ExamSet([exam for exam in exams if exam.id in caches[name].rows], caches[name], [], None)
        for name, exams in splits.items()
    }


def build_augment(recipe: Recipe) -> Any | None:
    return None if recipe.data.augment is None else build_plugin(recipe, "augment", recipe.data.augment)


def _cache_features(
    recipe: Recipe, accelerator: Accelerator, task: ReportTask, exams: Mapping[str, ExamSet], images: Images
) -> None:
    """Replaces the images of the exams by the maps of the frozen encoder, which then begins after them.

    Raises:
        UserError: the encoder has no `maps`, or trains.
    """
    encoder, choice, key = task.encoder, recipe.model.encoder, "data.cache_features"
    if not hasattr(encoder, "maps"):
        raise UserError(
            "unsupported",
            f"encoder '{choice.name}' has no `maps`",
            place=key,
            hint="Set data.cache_features=false, or write `maps` for the part that sees single images.",
        )
    first = next(iter(exams.values()))
    with torch.enable_grad(), evaluating(encoder):
        image_VCHW = collate([first[0]]).to("cpu").image_BVCHW[0]
        if encoder.maps(image_VCHW).requires_grad:
            raise UserError(
                "conflicting-settings",
                f"encoder '{choice.name}' trains, and its feature maps are computed once",
                place=key,
                hint="Freeze it by model.encoder.frozen_stages or train.freeze, or set data.cache_features=false.",
            )
    code = digest(find("encoder", choice.name, recipe.plugin_files).path)
    settings = [code, choice.name, sorted(choice.keys.items()), frozen_digest(encoder)]
    folder, device = Path(recipe.data.cache_dir), accelerator.device
    assert isinstance(images, ImageCache), "cache_features needs cached images"
    with main_process_first(accelerator), evaluating(encoder.to(device)):
        maps = build_map_cache(images, encoder.maps, key=repr(settings), folder=folder, device=device)
    for each in exams.values():
        each.maps = maps
    encoder.to("cpu").maps = _identity


def _identity(maps_MDhw: torch.Tensor) -> torch.Tensor:
    return maps_MDhw


def _require_exams(splits: Mapping[str, Sequence[Any]], found: str) -> None:
    """Raises UserError, with what was found, if a split is empty."""
    if empty := [name for name, exams in splits.items() if not exams]:
        raise UserError.of(Problem("empty-split", found, f"split {name}") for name in empty)


def require_no_mirrored_sides(recipe: Recipe, training_reports: Sequence[str]) -> None:
    augment = recipe.data.augment
    if augment is not None:
        plugin = find("augment", augment.name, recipe.plugin_files)
        if problem := mirrored_sides(plugin, augment.keys, training_reports):
            raise RecipeError.of([problem])


def _require_all_views_fit(task: ReportTask, exams: Mapping[str, ExamSet]) -> None:
    """Checks that the model takes the exam with the most views, which training itself may not reach.

    Raises:
        UserError: the exam has more views than the encoder takes, or than the decoder has room for.
    """
    largest = {name: max(each.exams, key=lambda exam: len(exam.views)) for name, each in exams.items() if each.exams}
    split, exam = max(largest.items(), key=lambda item: len(item[1].views))
    views, name = len(exam.views), f"exam {exam.id} of split {split}"
    require_view_count(name, views, getattr(task.encoder, "position_VD", None))
    if views == len(largest["train"].views):
        return  # the first epoch has such an exam
    with evaluating(task), torch.no_grad():
        try:
            task.decoder.init_cache(task.features(collate([hardest_sample(exams[split])]).to("cpu")))
        except ValueError as error:
            raise UserError(
                "does-not-fit", f"{views} views, more than any exam of train: {error}", place=name
            ) from error


def _require_same_exams(accelerator: Accelerator, splits: dict[str, list[Exam]]) -> None:
    """Raises UserError on every process if one reads other exams than the main process, such as a stale copy."""
    rows = [(name, exam.id, exam.report) for name, exams in splits.items() for exam in exams]
    digest = hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
    same = on_main(accelerator, lambda: digest) == digest
    differing = gather(accelerator, [] if same else [f"{socket.gethostname()} ({len(rows)} exams)"])
    if differing:
        raise UserError(
            "exams-differ",
            f"machines with other exams than the main process: {', '.join(sorted(set(differing)))}",
            expected=f"the same {on_main(accelerator, lambda: len(rows))} exams",
            hint="Copy the data again; with data.on_broken: skip, check the images there.",
        )


def require_a_batch(recipe: Recipe, training_exams: int) -> None:
    if training_exams < recipe.train.batch_size:
        raise UserError(
            "out-of-range",
            f"{recipe.train.batch_size} is more than the {training_exams} training exams",
            place="train.batch_size",
        )


def _exam_set(
    recipe: Recipe, exams: list[Exam], cache: Images, tokenizer: Any, topics: Topics | None, split: str
) -> ExamSet:
    tokens = [tokenizer.encode(exam.report, recipe.evaluate.max_length) for exam in exams]
    if topics is None:
        return ExamSet(exams, cache, tokens, None)
    return ExamSet(exams, cache, tokens, topics.labels[split], topics.weights[split])


def run_recipe(run: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of the exported model of a run, with overrides.

    Raises:
        UserError: the run has no exported model.
    """
    path = run / "model" / "recipe.yaml"
    if not path.is_file():
        raise UserError(
            "no-model",
            "the folder has no model/recipe.yaml",
            place=run,
            expected="the folder of a run, such as runs/breast/20260101-120000-ab12cd34",
        )
    return load_saved_recipe(path, overrides)
