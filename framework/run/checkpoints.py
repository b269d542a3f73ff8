"""The checkpoints of a run: every process takes part, the main process writes in the background."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from framework.checkpoint.export import ModelTexts
from framework.checkpoint.format import RetentionPolicy, SavedState, Snapshot, TrainState
from framework.checkpoint.saver import AsyncCheckpointer
from framework.data.leakage import PATIENTS_FILE, patients_seen
from framework.distributed.collectives import on_main
from framework.distributed.strategy import Strategy
from framework.models.external_weights import model_metadata, require_same_weights
from framework.models.topic_head import topic_head_in
from framework.recipe import result_tree
from framework.run.lifecycle import TrainingRun
from framework.run.model_card import model_card
from framework.runtime.console import print0


class RunCheckpoints:
    """Saves and restores the strategy and the train state of a run.

    Raises:
        UserError: no metric yields the monitor.
    """

    def __init__(self, run: TrainingRun, strategy: Strategy) -> None:
        self.run, self.strategy, self.accelerator = run, strategy, run.accelerator
        keep, components = run.recipe.checkpoint, run.components
        self.higher_is_better = components.scorer.higher_is_better(run.recipe.evaluate.monitored)
        self.position: tuple[int, ...] | None = None  # of the last checkpoint
        self.writer: AsyncCheckpointer | None = None
        if self.accelerator.is_main_process:
            policy = RetentionPolicy(keep.keep_last, keep.keep_best, self.higher_is_better)
            self.writer = AsyncCheckpointer(run.folder / "checkpoints", policy, keep.background)
            self.patients = patients_seen(run.recipe, components.exams, run.model_before)

    def restore(self, steps: int) -> TrainState:
        """The train state of the checkpoint that the run resumes from, with its tensors loaded; else a new one.

        Called on every process. Any strategy and number of processes can restore a checkpoint.

        Args:
            steps: of the whole run, to print.
        """
        checkpoint, state = self.run.opened.checkpoint, self.run.opened.train_state or TrainState()
        if checkpoint is not None:
            main, now = self.accelerator.is_main_process, self.run.launch
            on_main(self.accelerator, lambda: require_same_weights(checkpoint / "model", self.strategy.task))
            self.strategy.load(SavedState(checkpoint) if main else None, state.step)
            scaler = self.strategy.scaler()
            if scaler is not None and state.scaler:
                scaler.load_state_dict(state.scaler)
            changed = [
                f"; {key} was {state.launch.get(key)}, now {now[key]}"
                for key in ("processes", "strategy", "precision")
                if state.launch.get(key) != now[key]
            ]
            print0(f"resumed from {checkpoint}, step {state.step} of {steps}{''.join(changed)}")
            self.position = state.position
        state.recipe = result_tree(self.run.recipe)
        state.launch = {key: value for key, value in self.run.launch.items() if key != "id"}
        return state

    def save(self, train_state: TrainState) -> None:
        """Starts to write a checkpoint of the current state. Called on every process."""
        self.position = train_state.position
        self.wait()  # one copy of the state in memory at a time
        state = self.strategy.state()
        on_main(self.accelerator, lambda: self._write(train_state, state))

    def _write(self, train_state: TrainState, state: dict[str, Tensor]) -> None:
        assert self.writer is not None, "only the main process writes"
        scaler = self.strategy.scaler()
        train_state = replace(
            train_state,
            val_scores=dict(train_state.val_scores),
            scaler={} if scaler is None else dict(scaler.state_dict()),
        )
        metadata = {**model_metadata(self.strategy.task), PATIENTS_FILE: self.patients}
        exams = {split: len(each) for split, each in self.run.components.exams.items()}
        card = partial(model_card, self.run.recipe, exams, self.patients["datasets"])
        topics, head = self.run.components.topics, topic_head_in(self.strategy.task)
        topic_head = None if head is None or topics is None else (head, topics.words)
        texts = ModelTexts(self.run.components.tokenizer, self.run.saved_recipe, metadata, card, topic_head)
        self.writer.save(Snapshot(train_state, state, self.strategy.export_weights(state), texts))

    @property
    def failed(self) -> bool:
        """Whether this process failed to write a checkpoint."""
        return self.writer is not None and self.writer.failed

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk. Called on every process.

        Raises:
            CheckpointError: it could not be written.
        """
        on_main(self.accelerator, lambda: self.writer.finish() if self.writer is not None else None)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
