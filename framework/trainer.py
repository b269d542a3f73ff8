"""The training loop, read from top to bottom: train, Loop.run, Loop.epoch, Loop.step; an update is in step.py."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from framework.build import Parts, build_optimizer, build_parts, build_plugin
from framework.checkpoint.export import ModelTexts, load_weights, publish_model
from framework.checkpoint.format import (
    CheckpointError,
    RetentionPolicy,
    SavedState,
    Snapshot,
    TrainState,
    checkpoints_of,
)
from framework.checkpoint.saver import AsyncCheckpointer
from framework.data.leakage import NOTES, patients_seen, require_unseen
from framework.data.loading import BatchPlan, load_batches, step_seed, steps_of
from framework.distributed.collectives import all_reduce_max, broadcast, gather, on_main
from framework.distributed.gather_exams import micro_batch_notice
from framework.distributed.heartbeat import HangMonitor
from framework.distributed.launch import describe_launch, launch_id, start_accelerator
from framework.distributed.micro_batch import largest_micro_batch, too_large
from framework.distributed.prepare import prepare
from framework.evaluation.evaluate import evaluate_split, generate_reports
from framework.exam import Batch
from framework.models.external_weights import model_metadata, print_saved, require_same_weights
from framework.pages.run_page import write_page
from framework.recipe import Recipe, load_recipe, result_tree, save
from framework.run.folder import OpenedRun, open_run, take_back, topics_that_stay
from framework.run.init_from import Source, begun, source_of
from framework.run.tracking import BAD_STEPS, COST, Tracker, write_environment, write_json
from framework.runtime.console import print0, progress_bar
from framework.runtime.errors import Stopped
from framework.runtime.files import atomic_write
from framework.runtime.signals import FAILED, SAVE, StopSignals
from framework.scoring.table import print_scores
from framework.task import ReportTask
from framework.topics.distill import differing_topics
from framework.train_step import Step, augmented, set_seed, train_step, weights_at, weights_move

SAMPLES = 4  # validation exams whose reports are shown after each validation


class NonFiniteError(ValueError):
    """A loss or gradient that is not a number any more; names the exams of the step."""


def train(recipe: Recipe) -> Path:
    """Trains, keeps the model that validates best, scores it on the test split, and draws the run's page."""
    requests = StopSignals()
    requests.listen()
    accelerator = start_accelerator(recipe)
    with HangMonitor(accelerator, recipe.distributed.timeout) as hang_monitor:
        opened = on_main(accelerator, lambda: open_run(recipe))
        launch = {**describe_launch(accelerator, recipe), "id": launch_id()}
        print0(f"run {opened.folder}   " + "  ".join(f"{key} {value}" for key, value in launch.items() if key != "id"))
        for notice in recipe.notices:
            print0(f"notice: {notice}")
        if accelerator.is_main_process:
            write_environment(opened.folder, launch)
            atomic_write(opened.folder / "recipe.yaml", save(recipe))
            atomic_write(opened.folder / "overrides.txt", "".join(f"{word}\n" for word in recipe.overrides))
        try:
            # What is wrong with it is told before the exams are prepared.
            source = source_of(accelerator, recipe, opened)
            hang_monitor.at("preparing exams and topics", patient=True)
            kept = topics_that_stay(recipe, opened)
            parts = build_parts(recipe, accelerator, run=None if kept else opened.folder)
            on_main(accelerator, lambda: _require_same_exams(recipe, parts, opened, kept))
            launch |= begun(accelerator, recipe, parts, opened, source)
            loop = Trainer(accelerator, recipe, parts, opened, source, launch, requests, hang_monitor)
        except ValueError:  # refused, before anything was trained
            if accelerator.is_main_process:
                take_back(opened)
            raise
        try:
            loop.run()
        finally:
            loop.close()
    accelerator.end_training()
    return opened.folder


class Trainer:
    """A run between its folder and its scores. What it decides is decided on all processes alike."""

    def __init__(
        self,
        accelerator: Accelerator,
        recipe: Recipe,
        parts: Parts,
        opened: OpenedRun,
        source: Source | None,
        launch: dict[str, Any],
        requests: StopSignals,
        hang_monitor: HangMonitor,
    ) -> None:
        self.accelerator, self.recipe, self.parts = accelerator, recipe, parts
        self.folder, self.requests, self.hang_monitor = opened.folder, requests, hang_monitor
        self.exams = parts.exams["train"]
        asked = recipe.train.micro_batch_size
        whole = BatchPlan.plan(recipe.train.batch_size, None if asked == "auto" else asked, *_place(accelerator))
        if asked == "auto":
            asked = largest_micro_batch(accelerator, recipe, parts.task, self.exams, whole.micro_batch_size)
        self.batch_plan = replace(whole, micro_batch_size=asked)
        self.strategy = prepare(
            accelerator, recipe, parts.task, self.batch_plan, lambda task: build_optimizer(recipe, task)
        )
        self.steps_an_epoch = self.batch_plan.steps(len(self.exams))
        self.steps = recipe.train.epochs * self.steps_an_epoch
        self.schedule = build_plugin(recipe, "schedule", recipe.schedule, steps=self.steps)
        self.names = list(recipe.active_losses)
        higher = parts.scorer.higher_is_better(recipe.evaluate.monitored)  # tells a monitor that no metric gives
        self.keep = RetentionPolicy(recipe.checkpoint.keep_last, recipe.checkpoint.keep_best, higher)
        self.saver: AsyncCheckpointer | None = None
        if accelerator.is_main_process:
            model = opened.checkpoint / "model" if opened.checkpoint else source.model if source else None
            self.patients = patients_seen(recipe, parts.exams, model)
            self.saver = AsyncCheckpointer(self.folder / "checkpoints", self.keep, recipe.checkpoint.background)
        self.progress = TrainState()
        self.saved: tuple[int, ...] | None = None  # where the last checkpoint is
        if opened.checkpoint is not None and opened.train_state is not None:
            self._go_on(opened.checkpoint, opened.train_state, launch)
        cut = {name: getattr(self.batch_plan, name) for name in ("batch_size", "micro_batch_size", "accumulation")}
        settled = {**launch, **cut, **self.strategy.effective_config()}
        self.progress.recipe = result_tree(recipe)
        self.progress.launch = {key: value for key, value in settled.items() if key != "id"}  # no matter who started it
        if accelerator.is_main_process:
            write_environment(self.folder, {**settled, "steps": self.steps})  # anew, with what was settled since
        # A validation that was not finished is done anew, and so are the scores at the end.
        again = ("val/", "final/") if self.progress.step_in_epoch else ("final/",)
        self.tracker = Tracker(self.folder, writes=accelerator.is_main_process, done=self.progress.step, again=again)
        self.tracker.picture("topics", self.folder / "topics.png")
        self._say_sizes()

    def run(self) -> None:
        """All epochs, then the scores of the best model."""
        progress, patience = self.progress, self.recipe.train.early_stopping_patience
        self.bar = progress_bar(range(self.steps), total=self.steps, text="training", done=progress.step)
        self.requests.watch(self.folder)
        while progress.epoch < self.recipe.train.epochs and not (patience and progress.worse >= patience):
            self.epoch()
        self.bar.close()
        if patience and progress.worse >= patience:
            print0(f"stopped early: {progress.worse} validations without a better {self.recipe.evaluate.monitor_words}")
        if progress.skipped:
            print0(f"{progress.skipped} steps were skipped: their loss or gradient was not finite ({self._bad_steps})")
        self._finish()

    def epoch(self) -> None:
        """The rest of an epoch, then its validation and a checkpoint."""
        recipe, progress, batch_plan = self.recipe, self.progress, self.batch_plan
        started, losses = time.monotonic(), []
        batches = batch_plan.epoch(len(self.exams), recipe.train.seed, progress.epoch, progress.step_in_epoch)
        self.strategy.task.train()
        for group in steps_of(load_batches(self.exams, batches, recipe.data.num_workers), batch_plan.accumulation):
            self._heed()
            losses.append(self.step(group))
            every = recipe.checkpoint.every_steps
            if every and progress.step % every == 0 and progress.step_in_epoch < self.steps_an_epoch:
                self.save()
        self._heed()
        done = progress.epoch + 1
        line = f"epoch {done}/{recipe.train.epochs}"
        if losses:  # none in an epoch that was stopped at its validation
            line += f"  loss {sum(losses) / len(losses):.3f}"
        if done % recipe.evaluate.every_epochs == 0 or done == recipe.train.epochs:
            line += "  " + self.validate()
        progress.epoch, progress.step_in_epoch = done, 0
        self.save()
        print0(f"{line}  {time.monotonic() - started:.0f} s")

    def step(self, group: list[Batch]) -> float:
        """One update, its records, and what follows from a loss that is no number. Returns the loss."""
        progress, seed = self.progress, self.recipe.train.seed
        self.hang_monitor.at(f"step {progress.step + 1}")
        self.strategy.set_lr(self.schedule(progress.step))
        # Everything random is drawn anew each step from the step's number, so that a resumed run draws the same.
        set_seed(step_seed(seed, progress.step, self.accelerator.process_index))
        device = self.accelerator.device
        group = [augmented(batch, self.parts.augment, seed, progress.epoch, device) for batch in group]
        try:
            taken = train_step(self.strategy, group, weights_at(self.recipe, progress.step, self.steps))
        except torch.OutOfMemoryError as error:
            raise too_large(self.batch_plan, progress.step + 1) from error
        progress.step += 1
        progress.step_in_epoch += 1
        loss, norm = taken.loss, taken.norm
        if math.isfinite(norm) and math.isfinite(loss):
            self.strategy.after_update()
        elif not (math.isfinite(loss) and self._overflows()):
            self._note_bad_step(group, taken)
        each = {f"train/{name}": float(value) for name, value in zip(self.names, taken.terms_L)}
        each |= {f"train/{name}": value for name, value in taken.told.items()}
        if weights_move(self.recipe):
            each |= {f"train/weight/{name}": float(value) for name, value in zip(self.names, taken.weights_L)}
        rate = self.strategy.optimizer.param_groups[-1]["lr"]
        self.tracker.scalars(progress.step, {"train/loss": loss, **each, "train/lr": rate, "train/gradient_norm": norm})
        self.bar.update()
        self.bar.set_postfix(epoch=progress.epoch + 1, loss=f"{loss:.3f}", refresh=False)
        return loss

    def validate(self) -> str:
        """Writes reports for the validation split, scores them, and notes whether the model is the best so far."""
        recipe, progress, exams = self.recipe, self.progress, self.parts.exams["val"]
        with self.strategy.full_params_model() as task:
            rows = generate_reports(
                self.accelerator,
                task,
                self.parts.tokenizer,
                exams,
                recipe,
                recipe.evaluate.val_num_beams,
                bar=False,
                between=self._between_batches,
            )
        # Scored once and handed out: what decides about stopping must be the same on every process.
        scores = on_main(self.accelerator, lambda: self.parts.scorer.score(rows))
        self.tracker.scalars(progress.step, {f"val/{name}": value for name, value in scores.items()})
        for exam, (exam_id, prediction, reference) in list(zip(exams.exams, rows))[:SAMPLES]:
            if self.accelerator.is_main_process:
                self.tracker.sample(progress.step, exam_id, exams.cache.images(exam.id), reference, prediction)
        name = recipe.evaluate.monitored
        value, best = scores[name], progress.best
        progress.kept[f"step-{progress.step}"] = value
        if best is None or (value > best if self.keep.best_is_higher else value < best):
            progress.best, progress.best_step, progress.worse = value, progress.step, 0
        else:
            progress.worse += 1
        shown = [name for name in ("bleu_4", "cider", "findings_f1") if name in scores]
        return "  ".join(f"val/{name} {scores[name]:.3f}" for name in dict.fromkeys([name, *shown]))

    def save(self) -> None:
        """A checkpoint of now. All processes take part, the main process writes."""
        self.hang_monitor.at(f"saving step {self.progress.step}")
        self.saved = self._position
        on_main(self.accelerator, self._finish_saving)  # before a second copy of the state is made
        state = self.strategy.state()
        on_main(self.accelerator, lambda: self._write(state))

    def _write(self, state: dict[str, Tensor]) -> None:
        assert self.saver is not None, "the main process writes"
        scaler = self.strategy.scaler()
        progress = replace(
            self.progress,
            updates=self.strategy.updates,
            kept=dict(self.progress.kept),
            scaler={} if scaler is None else dict(scaler.state_dict()),
        )
        notes = {**model_metadata(self.strategy.task), NOTES: self.patients}
        texts = ModelTexts(self.parts.tokenizer, save(self.recipe), notes)
        self.saver.save(Snapshot(progress, state, self.strategy.export_weights(state), texts))

    def close(self) -> None:
        self.tracker.close()
        if self.saver is not None:
            self.saver.close()

    def _heed(self) -> None:
        """Does what was asked of any process, on all: saves, stops, or ends since a checkpoint was not written.

        Raises:
            Stopped: after a checkpoint.
        """
        request = all_reduce_max(self.accelerator, self._pending())
        if request == FAILED:
            on_main(self.accelerator, self._finish_saving)
        if not request:
            return
        if self.saved != self._position:
            self.save()
        on_main(self.accelerator, self._finish_saving)
        if request == SAVE:
            self.requests.done(SAVE)
            return
        reason = on_main(self.accelerator, self._why_stopped)
        raise Stopped(
            f"stopped by {reason} after step {self.progress.step} of {self.steps}; everything is saved. Go on with "
            f"resume={self.folder}"
        )

    def _pending(self) -> int:
        return FAILED if self.saver is not None and self.saver.failed else self.requests.pending()

    def _finish_saving(self) -> None:
        if self.saver is not None:
            self.saver.finish()

    def _why_stopped(self) -> str:
        self.requests.leave_word()
        return self.requests.reason or "a signal to another process"

    def _between_batches(self) -> None:
        """While reports are written, at the same points on every process."""
        self.hang_monitor.at("writing reports")
        self._heed()

    def _go_on(self, checkpoint: Path, progress: TrainState, now: dict[str, Any]) -> None:
        main = self.accelerator.is_main_process
        on_main(self.accelerator, lambda: require_same_weights(checkpoint / "model", self.strategy.task))
        self.strategy.load(SavedState(checkpoint) if main else None, progress.updates)
        scaler = self.strategy.scaler()
        if scaler is not None and progress.scaler:
            scaler.load_state_dict(progress.scaler)
        before = {key: progress.launch.get(key) for key in ("processes", "strategy", "precision")}
        changed = [f"{key} {value} then, {now[key]} now" for key, value in before.items() if value != now[key]]
        print0(f"resumed from {checkpoint}, step {progress.step} of {self.steps}" + "".join(f"; {c}" for c in changed))
        self.progress = progress
        self.saved = self._position

    @property
    def _position(self) -> tuple[int, ...]:
        """Where the run is. An epoch whose validation is still to come is not yet counted."""
        return self.progress.step, self.progress.epoch, self.progress.step_in_epoch

    def _overflows(self) -> bool:
        """Whether a gradient may be infinite by fp16's scale alone, which goes down until it is not."""
        scaler = self.strategy.scaler()
        return scaler is not None and scaler.get_scale() >= 1

    def _note_bad_step(self, group: list[Batch], taken: Step) -> None:
        """Writes down a step that was skipped, with its exams.

        Raises:
            NonFiniteError: more of them than the recipe allows, on every process alike.
        """
        progress, allowed = self.progress, self.recipe.train.skip_non_finite
        progress.skipped += 1
        exams = gather(self.accelerator, [exam_id for batch in group for exam_id in batch.exam_ids])
        loss, norm = taken.loss, taken.norm
        values = {name: float(value) for name, value in zip(self.names, taken.terms_L)}
        if self.accelerator.is_main_process:
            told = {"step": progress.step, "loss": loss, "terms": values, "gradient_norm": norm, "exams": exams}
            with self._bad_steps.open("a", encoding="utf-8") as file:
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
        said = f"step {progress.step}: the loss or its gradient is not finite (loss {loss}, gradient norm {norm})"
        if progress.skipped > allowed:
            raise NonFiniteError(
                f"{said}, number {progress.skipped} of such steps, and train.skip_non_finite is {allowed}. "
                f"Its exams: {', '.join(exams[:8])}{' ...' if len(exams) > 8 else ''}, all in {self._bad_steps}"
            )
        print0(f"warning: {said}; skipped, number {progress.skipped} of at most {allowed}")

    @property
    def _bad_steps(self) -> Path:
        return self.folder / BAD_STEPS

    def _finish(self) -> None:
        """Scores the best model on val and test."""
        accelerator, recipe, progress = self.accelerator, self.recipe, self.progress
        self.hang_monitor.at("scoring", patient=True)
        on_main(accelerator, self._finish_saving)
        with self.strategy.full_params_model() as task:
            on_main(accelerator, lambda: self._load_best(task))
            broadcast(accelerator, [*task.parameters(), *task.buffers()])
            if progress.best is not None:
                best = f"{recipe.evaluate.monitor_words} {progress.best:.4f}"
                print0(f"the model of step {progress.best_step} is kept ({best})")
            for split in ("val", "test"):
                scores = evaluate_split(
                    accelerator, task, self.parts, recipe, split, self.folder, between=self._between_batches
                )
                values = {f"final/{split}/{name}": value for name, value in scores["model"].items()}
                self.tracker.scalars(progress.step, values)
        print_scores("test", scores, self.parts.scorer.segmentation)
        page = on_main(accelerator, lambda: write_page(self.folder, self.parts))
        self._note_cost()
        print0(f"\nrun     {self.folder}\nopen    {page}\n        tensorboard --logdir {self.folder}")

    def _load_best(self, task: ReportTask) -> None:
        if self.progress.best is None:  # what was best is damaged, and no validation has followed
            newest = checkpoints_of(self.folder / "checkpoints")[0]
            print0(f"warning: no validation tells the best model, so the one of {newest} is kept")
            publish_model(newest / "model", self.folder / "model")
        load_weights(self.folder / "model", task)

    def _note_cost(self) -> None:
        memory = max(gather(self.accelerator, [_most_memory_gib(self.accelerator.device)]))
        if self.accelerator.is_main_process:
            write_json(self.folder / COST, {"parameters": self._parameters, "memory_gib": memory})

    @property
    def _parameters(self) -> int:
        return sum(shape.numel() for shape in self.strategy.shapes.values())

    def _say_sizes(self) -> None:
        parts, batch_plan = self.parts, self.batch_plan
        exams = ", ".join(f"{len(exams)} {name}" for name, exams in parts.exams.items())
        topics = f", {parts.topics.count} topics" if parts.topics else ""
        left_out = f" ({parts.left_out} left out: broken images)" if parts.left_out else ""
        print0(
            f"exams {exams}{left_out}; {len(parts.tokenizer)} words{topics}; {self._parameters / 1e6:.1f} M parameters"
        )
        cut = (
            f"{batch_plan.micro_batch_size} x {batch_plan.processes} processes x {batch_plan.accumulation} accumulated"
        )
        print0(f"{self.steps} steps of {batch_plan.batch_size} exams = {cut}")
        print_saved(self.strategy.task, self.strategy.shapes)
        if notice := self.strategy.batch_norm_notice(batch_plan):
            print0(f"notice: {notice}")
        if notice := micro_batch_notice(self.strategy.task.losses, batch_plan):
            print0(f"notice: {notice}")


def _require_same_exams(recipe: Recipe, parts: Parts, opened: OpenedRun, topics: Path | None) -> None:
    """Holds a run that goes on to its patients and its topics, neither of which the recipe alone decides.

    Args:
        topics: those that it was trained on; None: it may have others.

    Raises:
        ValueError: patients that it has learned from are scored now.
        CheckpointError: it would go on with other topics.
    """
    if opened.checkpoint is not None:
        model = opened.checkpoint / "model"
        require_unseen("resume", model, load_recipe(model / "recipe.yaml"), recipe, parts.exams)
    if topics is not None and (differing := differing_topics(topics, parts.topics)):
        raise CheckpointError(
            f"{topics}: {differing}, so what has learned topics would go on with others. They are found anew where "
            f"data.cache_dir ({recipe.data.cache_dir}) was cleared, or where libraries or Sonoscribe are other "
            f"versions. Put these back, start a new run from this model ('resume=never init_from={opened.folder}'), or "
            "go on all the same: 'resume_ignore=[distiller]'"
        )


def _place(accelerator: Accelerator) -> tuple[int, int]:
    return accelerator.process_index, accelerator.num_processes


def _most_memory_gib(device: torch.device) -> float:
    """The most memory that this process has held: of tensors on the GPU, or else of all on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
