"""Generates the reports of a split on all processes and scores them beside baselines and oracles."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from framework.build import OtherExams, RunComponents, build_components, run_recipe
from framework.checkpoint.export import verify_model
from framework.data.check import require_split
from framework.data.leakage import require_unseen
from framework.data.loading import ExamSet, lost_workers_reported
from framework.distributed.collectives import gather, on_main
from framework.distributed.launch import start_accelerator
from framework.evaluation.batches import batches_of_process, shard_indices, split_batches
from framework.evaluation.calibration import (
    Calibration,
    TemperatureFit,
    calibration_of,
    model_temperature,
    write_calibration,
)
from framework.evaluation.confidence import confidence_summary
from framework.evaluation.feature_distance import write_missing_features
from framework.evaluation.model_selection import BEST, ModelSelection, load_models, with_augmented_copies
from framework.evaluation.terms import fits_in_memory, mean_terms
from framework.evaluation.words import words_of_reports
from framework.exam import Batch
from framework.models.generation import generate
from framework.models.topic_head import read_topic_head
from framework.pages.exam_card import word_rows
from framework.recipe import Recipe, recipe_hash, result_tree
from framework.recipe.explain import differences
from framework.recipe.source import is_within
from framework.registry import find
from framework.run.model_card import write_model_card
from framework.run.tracking import write_json
from framework.runtime.console import print0
from framework.runtime.errors import Problem, UserError
from framework.runtime.files import atomic_write, read_object
from framework.runtime.live import ProgressBar
from framework.scoring.baselines import Comparison, rows_of, unseen_rows
from framework.scoring.bootstrap import PatientStatistics, intervals
from framework.scoring.scorer import Rows, Scorer
from framework.scoring.table import (
    BASELINES,
    CONFIDENCE,
    CONSTANTS,
    HIGH,
    LOW,
    NO_INTERVAL,
    VARIETY,
    VERSUS,
    Scores,
    print_scores,
    table_columns,
)
from framework.scoring.variety import variety, variety_summary
from framework.topics.distill import TOPICS_FILE, topic_changes

MAPS = 2000  # test exams of which it is kept where the model looked: 20 kB each


def _batches(
    accelerator: Accelerator, exams: ExamSet, recipe: Recipe, text: str, before_batch: Callable[[], None] | None
) -> Iterator[Batch]:
    """The batches of this process. Each exam is in one batch of one process."""
    shards = shard_indices(len(exams), accelerator.num_processes)
    of_processes = [split_batches(shard, recipe.evaluate.batch_size) for shard in shards]
    return batches_of_process(accelerator, exams, recipe, of_processes, text, before_batch)


@lost_workers_reported()
def fit_calibration(
    accelerator: Accelerator,
    task: Any,
    exams: ExamSet,
    recipe: Recipe,
    before_batch: Callable[[], None] | None = None,
) -> Calibration:
    """The temperature of a model, from the references of its validation exams. Called on every process.

    Args:
        task, before_batch: see `generate_reports`.
    """
    fit = TemperatureFit()
    for batch in _batches(accelerator, exams, recipe, "calibration", before_batch):
        batch = batch.to(accelerator.device)
        with accelerator.autocast(), torch.no_grad():
            fit.add(task.decoder(task.features(batch), batch.report_BT[:, :-1]), batch.report_BT)
    return calibration_of(gather(accelerator, [fit]))


@lost_workers_reported()
def generate_reports(
    accelerator: Accelerator,
    task: Any,
    tokenizer: Any,
    exams: ExamSet,
    recipe: Recipe,
    num_beams: int,
    before_batch: Callable[[], None] | None = None,
    after_batch: Callable[[Batch, Any, list[list[int]]], None] | None = None,
) -> Rows:
    """Rows (exam id, prediction, reference) of all exams, in their order, the same on every process.

    Args:
        task: a task with unsharded weights in eval mode, or an ensemble of such tasks.
        before_batch: see `batches_of_process`.
        after_batch: called with each batch of this process, its features, and the token ids of its reports.
    """
    settings = recipe.evaluate
    generated: list[tuple[str, str]] = []
    for batch in _batches(accelerator, exams, recipe, "reports", before_batch):
        memory = fits_in_memory(len(batch.exam_ids), "while generating reports of", " or a smaller evaluate.num_beams")
        with memory, accelerator.autocast(), torch.no_grad():
            features = task.features(batch.to(accelerator.device))
            reports = generate(task.decoder, features, num_beams=num_beams, **settings.search)
            if after_batch is not None:
                after_batch(batch, features, reports)
        generated += [(exam_id, tokenizer.decode(ids)) for exam_id, ids in zip(batch.exam_ids, reports, strict=True)]
    gathered = gather(accelerator, generated)
    predictions = dict(gathered)
    assert len(gathered) == len(predictions) == len(exams), (len(gathered), len(predictions), len(exams))
    return rows_of(exams.exams, [predictions[exam.id] for exam in exams.exams])


def evaluate_split(
    accelerator: Accelerator,
    task: Any,
    components: RunComponents,
    recipe: Recipe,
    split: str,
    run: Path,
    before_batch: Callable[[], None] | None = None,
    before_scoring: Callable[[], None] | None = None,
    label: str = "",
    written_by: Sequence[str] = (),
    alone: bool = True,
) -> Scores:
    """Scores the model and every baseline and oracle on a split; writes the scores, returns them on all processes.

    The ends of the 95 % intervals of the model's scores, and the reasons of scores without one, are rows of their own.
    Without metrics, the scores are the means of the loss terms, and no report is generated. The run's own validation
    split also calibrates the confidence of its model.

    Args:
        before_batch: see `generate_reports`.
        before_scoring: called on every process before the main process scores while the others wait.
        label: suffix of the names of the files, unless the run's own model generates the reports.
        written_by: the models that generate the reports, if there is a label.
        alone: whether the run's best model alone generates the reports, which its calibration and topic head belong to.
    """
    exams, num_beams = components.exams[split], recipe.evaluate.num_beams
    if not recipe.evaluate.metrics:
        terms = mean_terms(accelerator, task, components, recipe, split, before_batch)
        means: Scores = {"model": {"exams": len(exams), **terms}}
        on_main(accelerator, lambda: _store(run, split, means, [], [], components, label, written_by))
        return means
    task = with_augmented_copies(task, components.augment, recipe)
    model = run / "model"
    if split == "val" and not label:
        calibration = fit_calibration(accelerator, task, exams, recipe, before_batch)
        on_main(accelerator, lambda: write_calibration(model, calibration))
    temperature, topic_head = None, None
    if alone:  # other machines may not have the folder
        width = task.encoder.width
        temperature, topic_head = on_main(
            accelerator, lambda: (model_temperature(model), read_topic_head(model, width))
        )
    places = {exam.id: place for place, exam in enumerate(exams.exams)}
    words: list[dict[str, Any]] = []

    def keep_words(batch: Batch, features: Any, reports: list[list[int]]) -> None:
        """Where the model looked is kept of `MAPS` exams of test, which its page shows."""
        view_counts = batch.view_mask_BV.sum(1).tolist()
        looked = split == "test" and min(places[exam_id] for exam_id in batch.exam_ids) < MAPS
        found = words_of_reports(
            task, features, reports, components.tokenizer, view_counts, temperature, attention=looked
        )
        topics = [None] * len(reports) if topic_head is None else topic_head.predict(features.pooled_BD)
        for exam_id, ids, own, topic in zip(batch.exam_ids, reports, found, topics, strict=True):
            row = {"id": exam_id, "report": components.tokenizer.decode(ids), **word_rows(own)}
            words.append(row if topic is None else {**row, "topic": topic})

    rows = generate_reports(
        accelerator,
        task,
        components.tokenizer,
        exams,
        recipe,
        num_beams,
        before_batch=before_batch,
        after_batch=keep_words,
    )
    words = sorted(gather(accelerator, words), key=lambda row: places[row["id"]])

    if before_scoring is not None:
        before_scoring()

    def scored() -> Scores:
        scores = _score(components, recipe, exams, rows)
        if confidence := confidence_summary(rows, words, temperature):
            scores[CONFIDENCE] = confidence
        _store(run, split, scores, rows, words, components, label, written_by)
        return scores

    return on_main(accelerator, scored)


def _score(components: RunComponents, recipe: Recipe, exams: ExamSet, rows: Rows) -> Scores:
    """The scores of the model's reports and of every baseline and oracle. Called on the main process."""
    scores: Scores = {}
    scorer = components.scorer
    patients = {exam.id: exam.patient for exam in exams.exams}
    bootstrap: Any = {"seed": recipe.train.seed, "bootstrap_samples": recipe.evaluate.bootstrap_samples}
    values, seconds = scorer.timed_score(rows)
    scores["model"] = {"exams": len(rows), **variety([row[1] for row in rows]), **values}
    # Now, while metrics cache the statistics of these reports.
    ends: tuple[dict[str, Any], ...] = intervals(scorer, rows, patients, values, seconds, **bootstrap)
    scores |= {name: row for name, row in zip((LOW, HIGH, NO_INTERVAL), ends) if row}
    statistics = PatientStatistics(scorer, [exam.id for exam in exams.exams], patients)
    statistics.add(rows)
    comparisons = components.comparisons
    if comparisons is not None and (unseen := unseen_rows(rows, comparisons.train)):
        different = variety([row[1] for row in unseen])
        scores["model_on_unseen_reports"] = {"exams": len(unseen), **different, **scorer.score(unseen)}
    others = {} if comparisons is None else comparisons.of(exams)
    for name in ProgressBar(others, total=len(others), text="scores"):
        scores[name] = {"exams": len(rows), **variety(others[name].predictions)}
        for predictions, own in others[name].groups():
            these = rows_of(exams.exams, predictions)
            found = scorer.score(these, own)
            scores[name] |= {key: value for key, value in found.items() if own is None or key.split("/")[0] in own}
            if name in BASELINES:
                statistics.add(these, own)
    scores[VARIETY] = variety_summary(scorer, rows)
    if others:
        scores[CONSTANTS] = {
            name: {"report": constant.report, "tried": constant.tried}
            for name, constant in others["fixed_report"].constants.items()
        }
        scores[VERSUS] = _versus_strongest(scorer, statistics, rows, scores, others, bootstrap)
    return scores


def strongest_baselines(components: RunComponents, split: str, names: Sequence[str]) -> dict[str, float]:
    """For each of these scores on a split, that of the strongest baseline. Called on the main process."""
    assert components.comparisons is not None, "there are no training reports"
    exams, scorer, found = components.exams[split].exams, components.scorer, {}
    baselines = components.comparisons.baselines(components.exams[split])
    for name in names:
        values = {
            row: scorer.score(rows_of(exams, baseline.of(name)), [name])[name] for row, baseline in baselines.items()
        }
        found[name] = values[_strongest(scorer, name, values)]
    return found


def _strongest(scorer: Scorer, name: str, values: Mapping[str, float]) -> str:
    """The baseline with the best value of a score."""
    higher = scorer.higher_is_better(name.removesuffix("_char"))
    return (max if higher else min)(values, key=values.__getitem__)


def _versus_strongest(
    scorer: Scorer,
    statistics: PatientStatistics,
    rows: Rows,
    scores: Scores,
    others: Mapping[str, Comparison],
    bootstrap: Any,
) -> dict[str, dict[str, Any]]:
    """For each score: the strongest baseline, and the difference of the model to it with its 95 % interval."""
    found: dict[str, dict[str, Any]] = {}
    model = [prediction for _, prediction, _ in rows]
    for name in table_columns(scores):
        higher = scorer.higher_is_better(name.removesuffix("_char"))
        there = [row for row in BASELINES if name in scores[row]]
        strongest = _strongest(scorer, name, {row: scores[row][name] for row in there})
        difference = round(scores["model"][name] - scores[strongest][name], 6)
        found[name] = {"baseline": strongest, "difference": difference}
        ends = {
            row: statistics.difference(name, model, others[row].of(name), **bootstrap)
            for row in {strongest, "fixed_report"}
        }
        better = {row: pair is not None and (pair[0] > 0 if higher else pair[1] < 0) for row, pair in ends.items()}
        if (pair := ends[strongest]) is not None:
            found[name] |= {"low": pair[0], "high": pair[1], "better": better[strongest]}
            found[name]["better_than_fixed"] = better["fixed_report"]
    return found


def _store(
    run: Path,
    split: str,
    scores: Scores,
    rows: Rows,
    words: Sequence[dict[str, Any]],
    components: RunComponents,
    label: str,
    written_by: Sequence[str],
) -> None:
    folder, suffix = run / "predictions", f"-{label}" if label else ""
    folder.mkdir(exist_ok=True)
    (run / "words").mkdir(exist_ok=True)
    atomic_write(run / "words" / f"{split}{suffix}.jsonl", "".join(f"{json.dumps(row)}\n" for row in words))
    lines = []
    for exam_id, prediction, reference in rows:
        line: dict[str, Any] = {"id": exam_id, "reference": reference, "prediction": prediction}
        if attributes := components.scorer.attributes.get(exam_id):
            line["attributes"] = attributes  # a grid scores the reports again without the exams
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    atomic_write(folder / f"{split}{suffix}.jsonl", "".join(lines))
    path = run / f"scores{suffix}.json"  # last, so that scores never lack their predictions
    stored = read_object(path, "Delete it, and evaluate again.") if path.is_file() else {}
    models = {"written_by": list(written_by)} if label else {}
    write_json(path, {**stored, "segmentation": components.scorer.segmentation, split: {**scores, **models}})


PATH_KEYS = ("file", "images", "root", "folder")
# Keys that `evaluate` may override: they do not change the model. More plugin files may not replace parts of it.
OVERRIDABLE = ("data.dataset", "data.cache_dir", "data.num_workers", "data.on_broken", "evaluate", "plugins")


def _files_of_model(recipe: Recipe) -> dict[str, Path]:
    """The source file of each part of the model, by its key."""
    parts = {
        "data.tokenizer": recipe.data.tokenizer,
        "model.encoder": recipe.model.encoder,
        "model.decoder": recipe.model.decoder,
    }
    return {key: find(key.split(".")[1], part.name, recipe.plugin_files).path for key, part in parts.items()}


def _require_same_model(trained_by: Recipe, recipe: Recipe) -> None:
    changed = [row.key for row in differences(result_tree(trained_by), recipe)]
    before, now = _files_of_model(trained_by), _files_of_model(recipe)
    changed += [key for key in now if now[key] != before[key]]
    if wrong := [key for key in dict.fromkeys(changed) if not any(is_within(key, each) for each in OVERRIDABLE)]:
        expected = ", ".join(OVERRIDABLE)
        raise UserError.of(Problem("ignored-setting", "the trained model has it", key, expected) for key in wrong)


def paths_from(run: Path, recipe: Recipe) -> list[str]:
    """Overrides for relative paths of the data set that exist beside the run or above it, not in the working folder."""
    found = []
    for key, value in recipe.data.dataset.keys.items():
        is_path = isinstance(value, str) and ("/" in value or key in PATH_KEYS)
        if not is_path or Path(value).is_absolute() or Path(value).exists():
            continue
        above = next((path for path in run.resolve().parents if (path / value).exists()), None)
        if above is None:
            places = f"{Path.cwd()}, {run.resolve().parent} and the folders above it"
            print0(f"notice: data.dataset.{key}={value} is not here; searched in {places}")
            continue
        print0(f"notice: data.dataset.{key}={value} is read from {above}")
        found.append(f"data.dataset.{key}={json.dumps(str(above / value), ensure_ascii=False)}")
    return found


def evaluate_run(
    run: Path, split: str, selection: ModelSelection = BEST, overrides: Sequence[str] = (), name: str = ""
) -> Scores:
    """Scores a run on a split and updates its page. Scores of another selection than the best model, or with
    overrides, are written to files of their own.

    Args:
        overrides: of the run's recipe, such as other exams: `data.dataset.file=other.json`.
        name: suffix of the files with overrides; empty: `other-` and a hash of the recipe.

    Raises:
        UserError: there is no such split, a model was trained on patients of the split, an override would change the
            model, or there are no metrics.
    """
    for each in (run, *selection.others):
        verify_model(each / "model")
    require_split(split)
    if name and (not overrides or not re.fullmatch(r"[\w.-]+", name)):
        raise UserError(
            "wrong-format", f"found {name!r}", place="--name", expected="letters and digits, together with overrides"
        )
    trained_by = run_recipe(run)
    recipe = run_recipe(run, overrides)
    _require_same_model(trained_by, recipe)
    if not recipe.evaluate.metrics:
        hint = "Choose some, such as 'evaluate.metrics=[bleu, cider]'."
        raise UserError("missing-key", "the recipe has no metrics", place="evaluate.metrics", hint=hint)
    has_others = recipe.data.dataset != trained_by.data.dataset
    recipe = run_recipe(run, [*overrides, *paths_from(run, recipe)])
    other, with_own = None, recipe
    if has_others:  # baselines are made of the exams that the model was trained on
        own = run_recipe(run, paths_from(run, trained_by)).data.dataset
        other = OtherExams(recipe, split)
        with_own = recipe.model_copy(update={"data": recipe.data.model_copy(update={"dataset": own})})
    accelerator = start_accelerator(recipe, training=False)
    topics = run / TOPICS_FILE
    # The topics that the run was trained on are kept; a model that was copied to another folder gets them now.
    writes_topics = not overrides and not topics.is_file()
    components = build_components(
        with_own, accelerator, run=run if writes_topics else None, trained=run / "model", other=other
    )
    scored = {split: components.exams[split]}
    require_unseen("evaluate", run / "model", trained_by, recipe, scored)
    for each in selection.others:
        require_unseen(f"--with {each}", each / "model", run_recipe(each), recipe, scored)
    if differing := topic_changes(topics, components.topics):
        print0(f"notice: {topics}: {differing}; the file is kept. Only the score topic_oracle depends on topics")
    task, descriptions = load_models(run, recipe, components.tokenizer, selection, components.task)
    task = task.to(accelerator.device).eval()
    others = (name or f"other-{recipe_hash(recipe)[:8]}") if overrides else ""
    label = "-".join(filter(None, [selection.label, others]))
    scores = evaluate_split(
        accelerator,
        task,
        components,
        recipe,
        split,
        run,
        label=label,
        written_by=descriptions,
        alone=not selection.label,
    )
    if not label:
        write_missing_features(accelerator, task, components, recipe, run)
    print_scores(f"{split}, {label}" if label else split, scores, components.scorer.segmentation)
    if label:
        for number, description in enumerate(descriptions, 1):
            print0(f"model {number}  {description}")
        print0(f"scores   {run / f'scores-{label}.json'}\nreports  {run / 'predictions' / f'{split}-{label}.jsonl'}")
    elif accelerator.is_main_process:
        from framework.pages.run_page import write_page  # matplotlib is slow to import

        write_page(run, components)
        write_model_card(run, components.exams)
    accelerator.end_training()
    return scores
