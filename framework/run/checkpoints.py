"""The checkpoints of a run: every process takes part, the main process writes in the background."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from framework.checkpoint.export import ModelTexts
from framework.checkpoint.format import RetentionPolicy, SavedState, Snapshot, TrainState
from framework.checkpoint.saver import AsyncCheckpointer
from framework.data.leakage import NOTES
from framework.distributed.collectives import on_main
from framework.distributed.strategy import Strategy
from framework.models.external_weights import model_metadata, require_same_weights
from framework.recipe import Recipe, save


class RunCheckpoints:
    """Saves and restores strategy and train state.

    Args:
        patients: hashes of the patients that the model has seen, stored beside it; read on the main process only.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        strategy: Strategy,
        recipe: Recipe,
        folder: Path,
        *,
        tokenizer: Any,
        policy: RetentionPolicy,
        patients: Mapping[str, Any],
    ) -> None:
        self.accelerator, self.strategy, self.recipe = accelerator, strategy, recipe
        self.tokenizer, self.patients = tokenizer, patients
        self.position: tuple[int, ...] | None = None  # of the last checkpoint
        self.writer: AsyncCheckpointer | None = None
        if accelerator.is_main_process:
            self.writer = AsyncCheckpointer(folder, policy, recipe.checkpoint.background)

    def save(self, train_state: TrainState) -> None:
        """Starts a checkpoint of now. Called on every process."""
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
        metadata = {**model_metadata(self.strategy.task), NOTES: self.patients}
        texts = ModelTexts(self.tokenizer, save(self.recipe), metadata)
        self.writer.save(Snapshot(train_state, state, self.strategy.export_weights(state), texts))

    def restore(self, checkpoint: Path, train_state: TrainState) -> None:
        """Loads a verified checkpoint into the strategy. Called on every process."""
        main = self.accelerator.is_main_process
        on_main(self.accelerator, lambda: require_same_weights(checkpoint / "model", self.strategy.task))
        self.strategy.load(SavedState(checkpoint) if main else None, train_state.step)
        scaler = self.strategy.scaler()
        if scaler is not None and train_state.scaler:
            scaler.load_state_dict(train_state.scaler)
        self.position = train_state.position

    @property
    def failed(self) -> bool:
        """Whether this process failed to write a checkpoint."""
        return self.writer is not None and self.writer.failed

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk. Called on every process.

        Raises:
            SaveError: it could not be written.
        """
        on_main(self.accelerator, lambda: self.writer.finish() if self.writer is not None else None)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
