"""The training loop. Read downward: `train`, then `Trainer.run`, `epoch`, `step` and `validate`.

One update is in train_step.py; what surrounds training is in run/lifecycle.py.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from framework.build import build_optimizer, build_plugin
from framework.checkpoint.export import load_weights, publish_model, verify_model
from framework.checkpoint.format import checkpoints_of
from framework.data.loading import EpochSampler, build_loader, grouped, lost_workers_reported, step_seed
from framework.distributed.collectives import DelayedMax, broadcast, on_main
from framework.distributed.compiled import compile_error
from framework.distributed.micro_batch import resolve_batch_plan, step_out_of_memory
from framework.distributed.prepare import prepare
from framework.evaluation.evaluate import evaluate_split, generate_reports, strongest_baselines
from framework.evaluation.feature_distance import write_features
from framework.evaluation.terms import mean_terms
from framework.exam import Batch
from framework.recipe import Recipe
from framework.run.checkpoints import RunCheckpoints
from framework.run.lifecycle import TrainingRun, open_run_for_training, print_sizes, record_settings, write_cost
from framework.run.model_card import write_model_card
from framework.run.step_profile import StepProfile
from framework.run.throughput import Throughput
from framework.run.tracking import NonFiniteSteps, Tracker
from framework.run.training_display import TrainingDisplay
from framework.runtime.console import print0
from framework.runtime.errors import Stopped
from framework.runtime.memory import is_out_of_memory
from framework.runtime.signals import FAILED, SAVE
from framework.runtime.step_parts import step_part
from framework.scoring.examples import print_examples
from framework.scoring.table import BASELINES, print_scores, table_columns
from framework.scoring.variety import variety
from framework.task import ReportTask
from framework.train_step import StepOutput, batch_augment, set_seed, train_step, weights_at, weights_change

SAMPLES = 4  # validation exams whose reports are logged after each validation
SHOWN = ("bleu_4", "cider", "findings_f1")  # scores that are printed after each validation, beside the monitor


def train(recipe: Recipe) -> Path:
    """Trains, keeps the model that validates best, scores it on the test split, and writes the run's page.

    Returns:
        the run's folder.
    """
    with open_run_for_training(recipe) as run:
        trainer = Trainer(run)
        try:
            with lost_workers_reported():
                trainer.run()
        except BaseException as error:
            with contextlib.suppress(OSError):  # of a full disk, which may be the reason
                trainer.close(failed=not isinstance(error, Stopped))
            raise
        trainer.close()
    return run.folder


class Trainer:
    """Trains the task of a run. Decisions are made once and shared, so that all processes take the same path."""

    def __init__(self, run: TrainingRun) -> None:
        recipe, accelerator, exams = run.recipe, run.accelerator, run.components.exams["train"]
        self.training_run, self.recipe, self.accelerator, self.components = run, recipe, accelerator, run.components
        self.batch_plan = resolve_batch_plan(accelerator, recipe, run.components.task, exams)
        self.strategy = prepare(
            accelerator, recipe, run.components.task, self.batch_plan, lambda task: build_optimizer(recipe, task)
        )
        self.steps_per_epoch = self.batch_plan.steps(len(exams))
        self.steps = recipe.train.epochs * self.steps_per_epoch
        self.schedule = build_plugin(recipe, "schedule", recipe.schedule, steps=self.steps)
        self.sampler = EpochSampler(exams, self.batch_plan, recipe.train.seed)
        on_gpu = accelerator.device.type == "cuda"
        self.loader = build_loader(exams, self.sampler, recipe.data.num_workers, pin=on_gpu)
        record_settings(run, self.strategy, self.batch_plan, self.steps)
        self.checkpoints = RunCheckpoints(run, self.strategy)
        self.state = self.checkpoints.restore(self.steps)
        # Scores of a validation that was interrupted, and those at the end, are written again.
        rewritten = ("val/", "final/") if self.state.step_in_epoch else ("final/",)
        self.tracker = Tracker(
            run.folder,
            writes=accelerator.is_main_process,
            done=self.state.step,
            rewritten=rewritten,
            tensorboard="tensorboard" in recipe.run.trackers,
        )
        on_main(accelerator, lambda: self.tracker.connect(recipe, run.launch))
        self.tracker.picture("topics", run.folder / "topics.png")
        if run.components.topics is not None:
            columns = run.components.topics.columns([exam.report for exam in exams.exams])
            self.tracker.projector(run.components.topics.positions, columns)
        self.throughput = Throughput(accelerator.device, accelerator.num_processes, run.launch["precision"])
        self.profile: StepProfile | None = None
        self.stop_requests = DelayedMax(accelerator)
        self.val_baselines: dict[str, float] = {}  # on the main process, from the first validation on
        self.non_finite = NonFiniteSteps(
            accelerator,
            run.folder,
            list(recipe.active_losses),
            allowed=recipe.train.skip_non_finite,
            count=self.state.skipped_steps,
            scaler=self.strategy.scaler(),
        )
        print_sizes(run, self.strategy, self.batch_plan, self.steps)
        self.display = TrainingDisplay(self.state, recipe.train.epochs, self.steps, list(recipe.active_losses))

    def run(self) -> None:
        """Trains all epochs, then scores the best model."""
        self.training_run.started = True
        state, patience = self.state, self.recipe.train.early_stopping_patience
        self.training_run.signals.watch(self.training_run.folder)
        if self.recipe.train.profile and self.accelerator.is_main_process:
            self.profile = StepProfile(self.training_run.folder, self.training_run.launch_line)
        while state.epoch < self.recipe.train.epochs and not (patience and state.validations_since_best >= patience):
            self.epoch()
        self.display.close()
        if self.profile is not None:
            self.profile.close()
        if patience and state.validations_since_best >= patience:
            print0(f"stopped early: {state.validations_since_best} validations without a better {self._monitor}")
        if self.non_finite.count:
            print0(f"{self.non_finite.count} non-finite steps were skipped, listed in {self.non_finite.path}")
        self.score_best_model()

    def epoch(self) -> None:
        """Trains the rest of the current epoch, validates, and saves."""
        recipe, state = self.recipe, self.state
        started, losses = time.monotonic(), []
        self.sampler.set_epoch(state.epoch, state.step_in_epoch)
        self.strategy.task.train()
        self.throughput.start()
        for micro_batches in self.throughput.timed(grouped(self.loader, self.batch_plan.accumulation)):
            self._handle_stop()
            losses.append(self.step(micro_batches))
            every = recipe.checkpoint.every_steps
            if every and state.step % every == 0 and state.step_in_epoch < self.steps_per_epoch:
                self.save()
        self.non_finite.check()
        self._handle_stop()
        done = state.epoch + 1
        line = f"epoch {done}/{recipe.train.epochs}"
        if losses:  # empty if the run stopped at the validation of this epoch
            losses_S = torch.stack(losses).double()  # without skipped steps
            line += f"  loss {float(losses_S[losses_S.isfinite()].mean()):.3f}"
        if done % recipe.evaluate.every_epochs == 0 or done == recipe.train.epochs:
            line += "  " + self.validate()
        state.epoch, state.step_in_epoch = done, 0  # an epoch counts once it is validated
        self.save()
        print0(f"{line}  {time.monotonic() - started:.0f} s")

    def step(self, micro_batches: Sequence[Batch]) -> torch.Tensor:
        """Makes one update and logs it every `train.log_every` steps. Returns the loss, on the device."""
        state, recipe = self.state, self.recipe
        self.training_run.monitor.at(f"step {state.step + 1}")
        self.strategy.set_lr(self.schedule(state.step))
        # Random numbers depend on seed, step and process alone, so that a resumed run draws the same.
        set_seed(step_seed(recipe.train.seed, state.step, self.accelerator.process_index))
        weights_L = weights_at(recipe, state.step, self.steps)
        copies = self.strategy.task.compares_copies
        augment = batch_augment(self.components.augment, recipe.train.seed, state.epoch, copies=copies)
        try:
            with self.throughput.counted(micro_batches):
                output = train_step(self.strategy, micro_batches, weights_L, augment)
        except Exception as error:
            if is_out_of_memory(error):
                raise step_out_of_memory(self.batch_plan, state.step + 1) from error
            if recipe.train.compile and (refused := compile_error(error)):
                raise refused from error
            raise
        state.step += 1
        state.step_in_epoch += 1
        self.non_finite.add(state.step, [exam_id for batch in micro_batches for exam_id in batch.exam_ids], output)
        if state.step % recipe.train.log_every == 0:
            with step_part("log"):
                self.log(output)
        if self.profile is not None:
            self.profile.step()
        self.display.show()
        return output.loss

    def log(self, output: StepOutput) -> None:
        """Writes the values of the last step, and throughput since the last record. Waits for the device."""
        names = list(self.recipe.active_losses)
        values = {"loss": float(output.loss)}
        values |= dict(zip(names, output.terms_L.tolist()))
        values |= {name: float(value) for name, value in output.metrics.items()}
        if weights_change(self.recipe):
            values |= {f"weight/{name}": weight for name, weight in zip(names, output.weights_L.tolist())}
        values |= {"lr": self.strategy.optimizer.param_groups[-1]["lr"], "gradient_norm": float(output.grad_norm)}
        values |= self.throughput.since_last(self.batch_plan.batch_size)
        self.tracker.scalars(self.state.step, {f"train/{name}": value for name, value in values.items()})
        self.display.show_values(values)

    def validate(self) -> str:
        """Scores the validation split and updates the best step. Returns a line to print."""
        recipe, state = self.recipe, self.state
        scores, baselines = self._score_reports() if recipe.evaluate.metrics else (self._mean_terms(), {})
        self.tracker.scalars(state.step, {f"val/{name}": value for name, value in scores.items()})
        monitored = recipe.evaluate.monitored
        if not math.isfinite(scores[monitored]):
            print0(f"warning: step {state.step}: val/{monitored} is {scores[monitored]}, so this model is not the best")
        state.validated(scores[monitored], higher_is_better=self.checkpoints.higher_is_better)
        self.display.show_scores(scores, baselines)
        if not baselines:
            return f"val/{monitored} {scores[monitored]:.3f}"
        return "  ".join(f"val/{name} {scores[name]:.3f} (baseline {value:.3f})" for name, value in baselines.items())

    def _mean_terms(self) -> dict[str, float]:
        with self.strategy.full_params_model() as task:
            return mean_terms(self.accelerator, task, self.components, self.recipe, "val", self._before_batch)

    def _score_reports(self) -> tuple[dict[str, float], dict[str, float]]:
        """Generates the reports of the validation split, scores them, and logs some. Also returns the baselines."""
        recipe, exams = self.recipe, self.components.exams["val"]
        beams = recipe.evaluate.val_num_beams
        with self.strategy.full_params_model() as task:
            rows = generate_reports(
                self.accelerator,
                task,
                self.components.tokenizer,
                exams,
                recipe,
                beams,
                before_batch=self._before_batch,
            )
        self._before_scoring()
        for exam, (exam_id, prediction, reference) in list(zip(exams.exams, rows))[:SAMPLES]:
            if self.accelerator.is_main_process:
                self.tracker.sample(self.state.step, exam_id, exams.cache.images(exam.id), reference, prediction)
        # Scored once and shared: early stopping must be the same decision on every process.
        scores, baselines = on_main(self.accelerator, lambda: (self.components.scorer.score(rows), self._baselines()))
        return scores | variety([prediction for _, prediction, _ in rows]), baselines

    def _baselines(self) -> dict[str, float]:
        """The scores of the strongest baselines on val, of the scores that are printed. On the main process."""
        evaluate, scorer = self.recipe.evaluate, self.components.scorer
        if not self.val_baselines:
            known = [name for metric in scorer.metrics for name in metric.names]
            names = dict.fromkeys([evaluate.monitored, *(name for name in SHOWN if name in known)])
            self.val_baselines = strongest_baselines(self.components, "val", list(names))
        return self.val_baselines

    def save(self) -> None:
        self.non_finite.check()
        self.state.skipped_steps = self.non_finite.count
        foreground = not self.recipe.checkpoint.background
        self.training_run.monitor.at(f"saving step {self.state.step}", others_wait=foreground)
        self.display.show("saving")
        with self.throughput.paused():
            self.checkpoints.save(self.state)

    def score_best_model(self) -> None:
        """Scores the best model on val and test, and writes the run's page."""
        accelerator, recipe, state = self.accelerator, self.recipe, self.state
        self.training_run.monitor.at("loading the best model", others_wait=True)
        self.checkpoints.wait()
        with self.strategy.full_params_model() as task:
            on_main(accelerator, lambda: self._load_best(task))
            broadcast(accelerator, [*task.parameters(), *task.buffers()])
            if state.best_score is not None:
                print0(f"best model: step {state.best_step} ({self._monitor} {state.best_score:.4f})")
            for split in ("val", "test"):
                scores = evaluate_split(
                    accelerator,
                    task,
                    self.components,
                    recipe,
                    split,
                    self.training_run.folder,
                    before_batch=self._before_batch,
                    before_scoring=self._before_scoring,
                )
                values = {f"final/{split}/{name}": value for name, value in scores["model"].items()}
                for row in filter(scores.__contains__, BASELINES):  # none without metrics
                    names = [name for name in table_columns(scores) if name in scores[row]]
                    values |= {f"final/{split}/{row}/{name}": scores[row][name] for name in names}
                self.tracker.scalars(state.step, values)
            folder, before_batch = self.training_run.folder, partial(self._before_batch, "computing features")
            write_features(accelerator, task, self.components, recipe, folder, before_batch)
        print_scores("test", scores, self.components.scorer.segmentation)
        on_main(accelerator, lambda: print_examples(self.training_run.folder / "predictions" / "test.jsonl"))
        from framework.pages.run_page import write_page  # matplotlib is slow to import

        page = on_main(accelerator, lambda: write_page(folder, self.components))
        on_main(accelerator, lambda: write_model_card(folder, self.components.exams))
        write_cost(self.training_run, self.strategy)
        print0("\n        ".join([f"\nrun     {folder}\nopen    {page}", *self.tracker.hints]))

    def _load_best(self, task: ReportTask) -> None:
        if self.state.best_score is None:  # no validation gave a score, or none since the best checkpoint was damaged
            newest = checkpoints_of(self.training_run.folder / "checkpoints")[0]
            print0(f"warning: no validated checkpoint is left, so the model of {newest} is used")
            publish_model(newest / "model", self.training_run.folder / "model")
        verify_model(self.training_run.folder / "model")
        load_weights(self.training_run.folder / "model", task)

    def close(self, *, failed: bool = False) -> None:
        self.display.close()
        self.checkpoints.close()
        self.tracker.close(failed=failed)

    @property
    def _monitor(self) -> str:
        return self.recipe.evaluate.monitor_words

    def _before_batch(self, doing: str = "generating reports") -> None:
        """Called before each batch that is not trained on, equally often on every process."""
        self.training_run.monitor.at(doing)
        self.display.show(doing)
        self._handle_stop()

    def _before_scoring(self) -> None:
        """Called on every process before the main process scores while the others wait."""
        self.training_run.monitor.at("scoring", others_wait=True)
        self.display.show("scoring")

    def _handle_stop(self) -> None:
        """Saves or stops if any process was asked to, or stops if a checkpoint could not be written.

        Raises:
            Stopped: after a checkpoint.
        """
        signals = self.training_run.signals
        request = self.stop_requests(FAILED if self.checkpoints.failed else signals.pending())
        if request == FAILED:
            self.checkpoints.wait()
        if not request:
            return
        if self.checkpoints.position != self.state.position:
            self.save()
        self.checkpoints.wait()
        if request == SAVE:
            signals.done(SAVE)
            return
        reason = on_main(self.accelerator, signals.why)
        raise Stopped(
            f"stopped by {reason} after step {self.state.step} of {self.steps}; everything is saved. Resume with "
            f"resume={self.training_run.folder}"
        )
