"""Writes reports for a split on all processes, counts every exam once, and scores them beside floors and ceilings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from framework.checkpoint import load_weights
from framework.data import ExamSet, load_batches
from framework.distributed import from_main, gather
from framework.floors import Rows, floor_rows, rows_of, unseen_rows
from framework.generation import generate
from framework.progress import progress_bar, say
from framework.recipe import Recipe
from framework.tracking import write_json


def write_reports(
    accelerator: Accelerator, task: Any, tokenizer: Any, exams: ExamSet, recipe: Recipe, beam: int, bar: bool = True
) -> Rows:
    """Rows (exam id, prediction, reference) of all exams, in their order, the same on every process.

    Each process takes every n-th exam, so none is padded, and one with no exam left waits at the gather alone.
    """
    task = accelerator.unwrap_model(task)
    was_training = task.training
    task.eval()
    settings = recipe.evaluate
    mine = list(range(accelerator.process_index, len(exams), accelerator.num_processes))
    batches = [mine[i : i + settings.batch_size] for i in range(0, len(mine), settings.batch_size)]
    written: list[tuple[str, str]] = []
    loader = load_batches(exams, batches, recipe.data.workers)
    for batch in progress_bar(loader, total=len(batches), text="reports", shown=bar):
        with accelerator.autocast(), torch.no_grad():
            features = task.features(batch.to(accelerator.device))
            reports = generate(
                task.decoder,
                features,
                max_tokens=settings.max_tokens,
                beam=beam,
                length_penalty=settings.length_penalty,
                no_repeat=settings.no_repeat,
            )
        written += [(exam_id, tokenizer.decode(ids)) for exam_id, ids in zip(batch.exam_ids, reports, strict=True)]
    task.train(was_training)
    everything = gather(accelerator, written)
    predictions = dict(everything)
    assert len(everything) == len(predictions) == len(exams), "every exam is written about exactly once"
    return rows_of(exams.exams, [predictions[exam.id] for exam in exams.exams])


def evaluate_split(
    accelerator: Accelerator, task: torch.nn.Module, parts: Any, recipe: Recipe, split: str, run: Path
) -> dict[str, dict[str, float]]:
    """Scores of the model and of every floor and ceiling on a split; stored in the run, and given to all processes."""
    exams, train, val = parts.exams[split], parts.exams["train"], parts.exams["val"]
    rows = write_reports(accelerator, task, parts.tokenizer, exams, recipe, recipe.evaluate.beam)
    scores: dict[str, dict[str, float]] = {}
    if accelerator.is_main_process:
        named = {"model": rows}
        fresh = unseen_rows(rows, train)
        if fresh:
            named["model_on_unseen_reports"] = fresh
        monitor = recipe.evaluate.monitor.split("/", 1)[1]
        named |= floor_rows(exams, train, val, parts.scorer, monitor, recipe.train.seed)
        for name in progress_bar(named, total=len(named), text="scores"):
            scores[name] = {"exams": len(named[name]), **parts.scorer.score(named[name])}
        _store(run, split, scores, named["model"], parts)
    return from_main(accelerator, scores)


def _store(run: Path, split: str, scores: dict[str, dict[str, float]], rows: Rows, parts: Any) -> None:
    path = run / "scores.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**stored, "segmentation": parts.scorer.segmentation, split: scores})
    folder = run / "predictions"
    folder.mkdir(exist_ok=True)
    lines = []
    for exam_id, prediction, reference in rows:
        line = {"id": exam_id, "reference": reference, "prediction": prediction}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    part = folder / f".{split}.part"
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(folder / f"{split}.jsonl")


ORDER = (
    "random_report", "fixed_report", "nearest_image", "model", "model_on_unseen_reports",
    "topic_oracle", "retrieval_oracle", "rewording",
)  # fmt: skip
MEANING = {
    "random_report": "floor: a training report at random",
    "fixed_report": "floor: the best single report",
    "nearest_image": "floor: report of the nearest image",
    "model": "the model",
    "model_on_unseen_reports": "the model, reports not in training",
    "topic_oracle": "ceiling: best report of the true topic",
    "retrieval_oracle": "ceiling: nearest training report",
    "rewording": "ceiling: the truth, other words",
}


def score_table(scores: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: floors, the model, ceilings; one column a metric (attributes stay in scores.json)."""
    columns = [name for name in scores["model"] if "/" not in name and name not in ("bleu_2", "bleu_3", "exams")]
    rows = []
    for name in ORDER:
        if name in scores:
            values = [f"{scores[name][column]:.3f}" for column in columns]
            rows.append([MEANING[name], str(int(scores[name]["exams"])), *values])
    return ["reports from", "exams", *columns], rows


def print_scores(split: str, scores: dict[str, dict[str, float]], segmentation: str) -> None:
    header, rows = score_table(scores)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    say(f"\nScores on {split} (words: {segmentation})")
    for row in [header, *rows]:
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        say("  " + "  ".join(cells))


def evaluate_run(run: Path, split: str) -> dict[str, dict[str, float]]:
    """Scores the exported model of a run on a split, and draws the run's page anew."""
    from framework.build import build_parts, run_recipe
    from framework.distributed import start_accelerator
    from framework.report import write_page

    recipe = run_recipe(run)
    accelerator = start_accelerator(recipe)
    parts = build_parts(recipe, accelerator, run=run, trained=run / "model")
    if split not in parts.exams:
        raise ValueError(f"--split: no split '{split}' in the data. It has: {', '.join(parts.exams)}")
    load_weights(run / "model", parts.task)
    task = accelerator.prepare(parts.task)
    scores = evaluate_split(accelerator, task, parts, recipe, split, run)
    print_scores(split, scores, parts.scorer.segmentation)
    if accelerator.is_main_process:
        write_page(run, parts)
    accelerator.end_training()
    return scores
