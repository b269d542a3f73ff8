"""Writes reports for a split on all processes, counts every exam once, and scores them beside floors and ceilings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from framework.build import Parts, build_parts, run_recipe
from framework.data.leakage import require_unseen
from framework.data.loading import ExamSet, build_loader
from framework.distributed.collectives import gather, on_main
from framework.distributed.launch import start_accelerator
from framework.evaluation.model_selection import BEST, ModelSelection, load_models
from framework.models.generation import generate
from framework.pages.run_page import write_page
from framework.recipe import Recipe
from framework.run.tracking import write_json
from framework.runtime.console import print0, progress_bar
from framework.runtime.errors import UserError
from framework.runtime.files import atomic_write
from framework.scoring.baselines import Rows, baseline_rows, rows_of, unseen_rows
from framework.scoring.bootstrap import intervals
from framework.scoring.table import HIGH, LOW, WITHOUT, Scores, print_scores
from framework.topics.distill import TOLD, differing_topics


def shares(exams: int, processes: int) -> list[list[int]]:
    """The exam numbers of each process: every n-th, so that each exam is somebody's, and nobody's twice."""
    return [list(range(rank, exams, processes)) for rank in range(processes)]


def generate_reports(
    accelerator: Accelerator,
    task: Any,
    tokenizer: Any,
    exams: ExamSet,
    recipe: Recipe,
    num_beams: int,
    bar: bool = True,
    between: Callable[[], None] | None = None,
) -> Rows:
    """Rows (exam id, prediction, reference) of all exams, in their order, the same on every process.

    Each process takes every n-th exam, so none is padded.

    Args:
        task: with whole weights, in eval mode; or an ensemble of such.
        between: called before each batch, equally often on every process, also where one has no batch left.
    """
    settings = recipe.evaluate
    all_shares = shares(len(exams), accelerator.num_processes)
    mine = all_shares[accelerator.process_index]
    batches = [mine[i : i + settings.batch_size] for i in range(0, len(mine), settings.batch_size)]
    rounds = math.ceil(len(all_shares[0]) / settings.batch_size)
    written: list[tuple[str, str]] = []
    loader = iter(build_loader(exams, batches, recipe.data.num_workers))
    for _ in progress_bar(range(rounds), total=rounds, text="reports", shown=bar):
        if between is not None:
            between()
        batch = next(loader, None)
        if batch is None:
            continue
        try:
            with accelerator.autocast(), torch.no_grad():
                features = task.features(batch.to(accelerator.device))
                reports = generate(
                    task.decoder,
                    features,
                    max_length=settings.max_length,
                    num_beams=num_beams,
                    length_penalty=settings.length_penalty,
                    no_repeat_ngram_size=settings.no_repeat_ngram_size,
                )
        except torch.OutOfMemoryError as error:
            raise UserError(
                "out-of-memory",
                f"out of GPU memory while generating reports of {len(batch.exam_ids)} exams at a time",
                place="evaluate.batch_size",
                hint=f"Set evaluate.batch_size={max(1, len(batch.exam_ids) // 2)} or a smaller evaluate.num_beams.",
            ) from error
        written += [(exam_id, tokenizer.decode(ids)) for exam_id, ids in zip(batch.exam_ids, reports, strict=True)]
    everything = gather(accelerator, written)
    predictions = dict(everything)
    if not len(everything) == len(predictions) == len(exams):
        raise RuntimeError(f"{len(exams)} exams, {len(everything)} reports, of {len(predictions)} exams: a defect")
    return rows_of(exams.exams, [predictions[exam.id] for exam in exams.exams])


def evaluate_split(
    accelerator: Accelerator,
    task: Any,
    parts: Parts,
    recipe: Recipe,
    split: str,
    run: Path,
    between: Callable[[], None] | None = None,
    label: str = "",
    written_by: Sequence[str] = (),
) -> Scores:
    """Scores of the model and of every floor and ceiling on a split; stored in the run, and given to all processes.

    Those of the model are followed by the ends of their 95 % intervals, as rows of their own, and by why one has none.

    Args:
        label: stands behind the names of the files, where it is not the run's own model that writes.
        written_by: the models that write then.
    """
    exams, train, val = parts.exams[split], parts.exams["train"], parts.exams["val"]
    num_beams = recipe.evaluate.num_beams
    rows = generate_reports(accelerator, task, parts.tokenizer, exams, recipe, num_beams, between=between)

    def scored() -> Scores:
        scores: Scores = {}
        named = {"model": rows}
        fresh = unseen_rows(rows, train)
        if fresh:
            named["model_on_unseen_reports"] = fresh
        named |= baseline_rows(exams, train, val, parts.scorer, recipe.evaluate.monitored, recipe.train.seed)
        patients = {exam.id: exam.patient for exam in exams.exams}
        seed, bootstrap_samples = recipe.train.seed, recipe.evaluate.bootstrap_samples
        took: dict[tuple[int, str], float] = {}
        found: tuple[dict[str, Any], ...] = ()
        for name in progress_bar(named, total=len(named), text="scores"):
            values = parts.scorer.score(named[name], took if name == "model" else None)
            scores[name] = {"exams": len(named[name]), **values}
            if name == "model":  # before any other, while metrics remember what they found in these reports
                found = intervals(
                    parts.scorer, rows, patients, values, took, seed=seed, bootstrap_samples=bootstrap_samples
                )
        scores.update((name, values) for name, values in zip((LOW, HIGH, WITHOUT), found) if values)
        _store(run, split, scores, rows, parts, label, written_by)
        return scores

    return on_main(accelerator, scored)


def _store(
    run: Path,
    split: str,
    scores: Scores,
    rows: Rows,
    parts: Parts,
    label: str,
    written_by: Sequence[str],
) -> None:
    folder, end = run / "predictions", f"-{label}" if label else ""
    folder.mkdir(exist_ok=True)
    lines = []
    for exam_id, prediction, reference in rows:
        line = {"id": exam_id, "reference": reference, "prediction": prediction}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    atomic_write(folder / f"{split}{end}.jsonl", "".join(lines))
    path = run / f"scores{end}.json"  # last: who finds the scores finds what they were made from
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    told = {"written_by": list(written_by)} if label else {}
    write_json(path, {**stored, "segmentation": parts.scorer.segmentation, split: {**scores, **told}})


def evaluate_run(run: Path, split: str, writers: ModelSelection = BEST) -> Scores:
    """Scores the exported model of a run on a split, and draws the run's page anew; or other writers, whose scores and
    reports get names of their own beside the run's.
    """
    recipe = run_recipe(run)
    accelerator = start_accelerator(recipe, training=False)
    topics = run / TOLD
    # What it was trained on stays; a model that was copied to another place is told them.
    parts = build_parts(recipe, accelerator, run=None if topics.is_file() else run, trained=run / "model")
    if split not in parts.exams:
        raise ValueError(f"--split: no split '{split}' in the data. It has: {', '.join(parts.exams)}")
    scored = {split: parts.exams[split]}
    require_unseen("evaluate", run / "model", recipe, recipe, scored)
    for other in writers.others:
        require_unseen(f"--with {other}", other / "model", run_recipe(other), recipe, scored)
    if differing := differing_topics(topics, parts.topics):
        print0(f"notice: {topics}: {differing}; it stays as it is. Of the scores, topic_oracle alone depends on topics")
    task, told = load_models(run, recipe, parts.tokenizer, writers, parts.task)
    task, label = task.to(accelerator.device).eval(), writers.label
    scores = evaluate_split(accelerator, task, parts, recipe, split, run, label=label, written_by=told)
    print_scores(f"{split}, {label}" if label else split, scores, parts.scorer.segmentation)
    if label:
        for number, line in enumerate(told, 1):
            print0(f"model {number}  {line}")
        print0(f"scores   {run / f'scores-{label}.json'}\nreports  {run / 'predictions' / f'{split}-{label}.jsonl'}")
    elif accelerator.is_main_process:
        write_page(run, parts)
    accelerator.end_training()
    return scores
