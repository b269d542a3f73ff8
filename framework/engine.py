"""The training loop, read from top to bottom."""

from __future__ import annotations

import contextlib
import json
import math
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from framework.build import Parts, build_parts, build_plugin
from framework.checkpoint import (
    Progress,
    export_model,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from framework.data import Slices, exam_seed, load_batches, step_seed, steps_of
from framework.distributed import describe_launch, from_main, start_accelerator
from framework.evaluation import evaluate_split, write_reports
from framework.exam import Batch
from framework.optim import parameter_groups
from framework.progress import progress_bar, say
from framework.recipe import Recipe, recipe_hash, save
from framework.report import write_page
from framework.score_table import print_scores
from framework.tracking import Tracker, write_environment

SAMPLES = 4  # validation exams whose reports are shown after each validation


class NonFiniteError(ValueError):
    """A loss that is not a number any more; names the exams of the step."""


def train(recipe: Recipe) -> Path:
    """Trains, keeps the model that validates best, scores it on the test split, and draws the run's page."""
    accelerator = start_accelerator(recipe)
    run, checkpoint = from_main(accelerator, _open_run(recipe) if accelerator.is_main_process else None)
    launch = describe_launch(accelerator)
    say(f"run {run}   " + "  ".join(f"{key} {value}" for key, value in launch.items()))
    for notice in recipe.notices:
        say(f"notice: {notice}")
    if accelerator.is_main_process:
        (run / "recipe.yaml").write_text(save(recipe), encoding="utf-8")
        (run / "overrides.txt").write_text("".join(f"{word}\n" for word in recipe.overrides), encoding="utf-8")
        write_environment(run, launch)

    parts = build_parts(recipe, accelerator, run=run)
    micro = None if recipe.train.micro_batch == "auto" else recipe.train.micro_batch
    slices = Slices.plan(recipe.train.batch_size, micro, accelerator.process_index, accelerator.num_processes)
    train_set = parts.exams["train"]
    steps = recipe.train.epochs * slices.steps(len(train_set))
    groups = parameter_groups(parts.task, recipe.optimizer.lr, recipe.optimizer.encoder_lr)
    optimizer = build_plugin(recipe, "optimizer", recipe.optimizer, groups=groups)
    schedule = build_plugin(recipe, "schedule", recipe.schedule, steps=steps)
    rates = [group["lr"] for group in optimizer.param_groups]
    progress = Progress(recipe=recipe_hash(recipe))
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, parts.task, optimizer, progress.recipe)
        say(f"resumed from {checkpoint}, step {progress.step} of {steps}")
    task, optimizer = accelerator.prepare(parts.task, optimizer)
    tracker = Tracker(run, writes=accelerator.is_main_process, resumed_at=None if checkpoint is None else progress.step)
    tracker.picture("topics", run / "topics.png")
    _say_sizes(parts, steps, slices)

    names = list(recipe.active_losses)
    weights = torch.tensor([recipe.losses[name].weight for name in names], device=accelerator.device)
    bar = progress_bar(range(steps), total=steps, text="training", done=progress.step)
    patience = recipe.train.early_stop
    while progress.epoch < recipe.train.epochs and not (patience and progress.worse >= patience):
        started, total = time.monotonic(), 0.0
        batches = slices.epoch(len(train_set), recipe.train.seed, progress.epoch, progress.step_in_epoch)
        task.train()
        for group in steps_of(load_batches(train_set, batches, recipe.data.workers), slices.accumulation):
            factor = schedule(progress.step)
            for row, rate in zip(optimizer.param_groups, rates):
                row["lr"] = rate * factor
            # Dropout is drawn anew each step from the step's number, so that a resumed run draws the same.
            torch.manual_seed(step_seed(recipe.train.seed, progress.step, accelerator.process_index))
            group = [_augmented(batch, parts, recipe.train.seed, progress.epoch) for batch in group]
            terms, norm = take_step(accelerator, task, optimizer, group, weights, recipe.train.clip)
            progress.step += 1
            progress.step_in_epoch += 1
            loss = float((terms * weights).sum())
            total += loss
            each = {f"train/{name}": float(value) for name, value in zip(names, terms)}
            lr = {"train/lr": optimizer.param_groups[-1]["lr"], "train/gradient_norm": norm}
            tracker.scalars(progress.step, {"train/loss": loss, **each, **lr})
            bar.update()
            bar.set_postfix(epoch=progress.epoch + 1, loss=f"{loss:.3f}", refresh=False)
            every = recipe.checkpoint.every_steps
            if every and progress.step % every == 0 and progress.step_in_epoch < slices.steps(len(train_set)):
                _save(accelerator, run, task, optimizer, progress, recipe, parts)
        progress.epoch += 1
        mean = total / max(1, len(batches) // slices.accumulation)
        progress.step_in_epoch = 0
        line = f"epoch {progress.epoch}/{recipe.train.epochs}  loss {mean:.3f}"
        if progress.epoch % recipe.evaluate.every_epochs == 0 or progress.epoch == recipe.train.epochs:
            line += "  " + validate(accelerator, task, parts, recipe, progress, tracker, run)
        _save(accelerator, run, task, optimizer, progress, recipe, parts)
        say(f"{line}  {time.monotonic() - started:.0f} s")
    bar.close()
    if patience and progress.worse >= patience:
        say(f"stopped early: {progress.worse} validations without a better {recipe.evaluate.monitor}")

    accelerator.wait_for_everyone()
    load_weights(run / "model", accelerator.unwrap_model(task))
    say(f"the model of step {progress.best_step} is kept ({recipe.evaluate.monitor} {progress.best:.4f})")
    for split in ("val", "test"):
        scores = evaluate_split(accelerator, task, parts, recipe, split, run)
        tracker.scalars(progress.step, {f"final/{split}/{name}": value for name, value in scores["model"].items()})
    tracker.close()
    print_scores("test", scores, parts.scorer.segmentation)
    if accelerator.is_main_process:
        page = write_page(run, parts)
        say(f"\nrun     {run}\nopen    {page}\n        tensorboard --logdir {run}")
    accelerator.end_training()
    return run


def take_step(
    accelerator: Accelerator, task: Any, optimizer: Any, group: list[Batch], weights: Tensor, clip: float | None
) -> tuple[Tensor, float]:
    """One update from the micro-batches of a step. Returns the mean of each term over all processes, and the norm.

    The divisor of each term is known before the first backward, so sums over micro-batches and processes add up to
    the gradient of one large batch.

    Raises:
        NonFiniteError: before the update, on every process alike.
    """
    batches = [batch.to(accelerator.device) for batch in group]
    count_of = accelerator.unwrap_model(task).counts
    counts = accelerator.reduce(torch.stack([count_of(batch) for batch in batches]).sum(0), "sum").clamp(min=1)
    sums = torch.zeros_like(weights)
    for number, batch in enumerate(batches, 1):
        last = number == len(batches)
        with contextlib.nullcontext() if last else accelerator.no_sync(task):
            terms = task(batch)  # task(...), never task.forward(...): wrappers hook __call__
            # Wrappers average gradients over processes, and here they are to be added.
            accelerator.backward((terms / counts * weights).sum() * accelerator.num_processes)
        sums += terms.detach()
    terms = accelerator.reduce(sums, "sum") / counts
    if not bool(torch.isfinite(terms).all()):
        exams = ", ".join(exam_id for batch in group for exam_id in batch.exam_ids)
        raise NonFiniteError(f"the loss is not finite ({terms.tolist()}) on a step with exams {exams}")
    norm = accelerator.clip_grad_norm_(task.parameters(), math.inf if clip is None else clip)
    optimizer.step()
    optimizer.zero_grad()
    return terms, float(norm)


def validate(
    accelerator: Accelerator, task: Any, parts: Parts, recipe: Recipe, progress: Progress, tracker: Tracker, run: Path
) -> str:
    """Writes reports for the validation split, scores them, and keeps the model if it is the best so far."""
    exams = parts.exams["val"]
    rows = write_reports(accelerator, task, parts.tokenizer, exams, recipe, recipe.evaluate.val_beam, bar=False)
    # Scored once and handed out: what decides about stopping must be the same on every process.
    scores = from_main(accelerator, parts.scorer.score(rows) if accelerator.is_main_process else None)
    tracker.scalars(progress.step, {f"val/{name}": value for name, value in scores.items()})
    for exam, (exam_id, prediction, reference) in list(zip(exams.exams, rows))[:SAMPLES]:
        tracker.sample(progress.step, exam_id, exams.cache.images(exam.id), reference, prediction)
    name = recipe.evaluate.monitored
    higher = parts.scorer.metric_of(name).higher_is_better  # tells a monitor that no metric gives
    value = scores[name]
    progress.kept[f"step-{progress.step}"] = value
    if progress.best is None or (value > progress.best if higher else value < progress.best):
        progress.best, progress.best_step, progress.worse = value, progress.step, 0
        if accelerator.is_main_process:
            export_model(run / "model", accelerator.unwrap_model(task), parts.tokenizer, save(recipe))
    else:
        progress.worse += 1
    shown = [name for name in ("bleu_4", "cider", "findings_f1") if name in scores]
    return "  ".join(f"val/{name} {scores[name]:.3f}" for name in dict.fromkeys([name, *shown]))


def _augmented(batch: Batch, parts: Parts, seed: int, epoch: int) -> Batch:
    if parts.augment is not None:
        seeds = [exam_seed(seed, epoch, exam_id) for exam_id in batch.exam_ids]
        batch.image_BVCHW = parts.augment(batch.image_BVCHW, seeds)
    return batch


def _save(
    accelerator: Accelerator, run: Path, task: Any, optimizer: Any, progress: Progress, recipe: Recipe, parts: Parts
) -> None:
    if accelerator.is_main_process:
        keep = recipe.checkpoint
        higher = parts.scorer.metric_of(recipe.evaluate.monitored).higher_is_better
        unwrapped = accelerator.unwrap_model(task)
        save_checkpoint(run / "checkpoints", unwrapped, optimizer, progress, keep.keep_last, keep.keep_best, higher)


def _open_run(recipe: Recipe) -> tuple[Path, Path | None]:
    """The run's folder, made, and the checkpoint to go on from, if any.

    Raises:
        ValueError: the named run exists and the recipe does not resume, or there is nothing to resume from.
    """
    home = Path(recipe.run.root) / recipe.path.stem
    fresh = recipe.run.name
    if fresh == "auto":
        fresh = f"{datetime.now():%Y%m%d-%H%M%S}-{recipe_hash(recipe)[:8]}"
    if recipe.resume == "never":
        run = home / fresh
        if (run / "checkpoints").is_dir():
            raise ValueError(f"{run} holds a run already. Take another run.name, or resume=auto to go on with it.")
    elif recipe.resume == "auto":
        run = home / fresh if recipe.run.name != "auto" else _unfinished(home, recipe_hash(recipe)[:8]) or home / fresh
    else:
        named = Path(recipe.resume)
        run = named.parent.parent if named.parent.name == "checkpoints" else named
        checkpoint = named if named is not run else latest_checkpoint(run / "checkpoints")
        if checkpoint is None or not (checkpoint / "manifest.json").is_file():
            raise ValueError(
                f"resume: {named} is no checkpoint and no run with one; expected RUN or RUN/checkpoints/step-N"
            )
        return run, checkpoint
    run.mkdir(parents=True, exist_ok=True)
    return run, latest_checkpoint(run / "checkpoints")


def _unfinished(home: Path, digest: str) -> Path | None:
    """The newest run of this very recipe that has not come to its scores."""
    for run in sorted(home.glob(f"*-{digest}"), reverse=True):
        scores = run / "scores.json"
        if not scores.is_file() or "test" not in json.loads(scores.read_text(encoding="utf-8")):
            return run
    return None


def _say_sizes(parts: Parts, steps: int, slices: Slices) -> None:
    exams = ", ".join(f"{len(exams)} {name}" for name, exams in parts.exams.items())
    parameters = sum(weight.numel() for weight in parts.task.parameters()) / 1e6
    topics = f", {parts.topics.count} topics" if parts.topics else ""
    left_out = f" ({parts.left_out} left out: broken images)" if parts.left_out else ""
    say(f"exams {exams}{left_out}; {len(parts.tokenizer)} words{topics}; {parameters:.1f} M parameters")
    cut = f"{slices.micro_batch} x {slices.processes} processes x {slices.accumulation} accumulated"
    say(f"{steps} steps of {slices.batch_size} exams = {cut}")
    normalized = any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in parts.task.modules())
    if normalized and slices.processes * slices.accumulation > 1:
        say(f"notice: batch normalization sees {slices.micro_batch} exams at a time, so results depend on this cut")
