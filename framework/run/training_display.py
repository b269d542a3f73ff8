"""What a terminal shows while a run trains: how far it is, its speed, its losses, and scores beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from framework.checkpoint.format import TrainState
from framework.runtime.live import Clock, Display, bar_row, time_text

if TYPE_CHECKING:
    from rich.console import Group


class TrainingDisplay:
    """A display of the values that the trainer passes on; it waits for no device and computes nothing.

    Args:
        state: of the run, which the trainer changes.
        epochs: of the whole run.
        steps: of the whole run.
        losses: names of the loss terms.
    """

    def __init__(self, state: TrainState, epochs: int, steps: int, losses: Sequence[str]) -> None:
        self.state, self.epochs, self.steps, self.losses = state, epochs, steps, losses
        self.clock = Clock(state.step)
        self.doing = ""
        self.values: Mapping[str, float] = {}
        self.scores: Mapping[str, float] = {}
        self.baselines: Mapping[str, float] = {}
        self.display = Display(self._rows, self._line)
        self.display.refresh()

    def show(self, doing: str = "") -> None:
        """Draws the display again, if it is time to.

        Args:
            doing: what the run does between two steps; empty in a step.
        """
        self.doing = doing
        self.display.refresh()

    def show_values(self, values: Mapping[str, float]) -> None:
        """Takes the values of the last step, by name."""
        self.values = values
        self.show()

    def show_scores(self, scores: Mapping[str, float], baselines: Mapping[str, float]) -> None:
        """Takes the scores of the last validation, and those of the strongest baselines that stand beside them."""
        self.scores, self.baselines = scores, baselines
        self.show()

    def close(self) -> None:
        self.display.close()

    @property
    def _epoch(self) -> str:
        return f"epoch {min(self.state.epoch + 1, self.epochs)}/{self.epochs}"

    def _speed(self) -> list[str]:
        formats = {"exams_per_s": "{:.1f} exams/s", "memory_gib": "{:.2f} GiB", "lr": "lr {:.2g}"}
        return [text.format(self.values[name]) for name, text in formats.items() if name in self.values]

    def _losses(self) -> list[str]:
        return [f"{name} {self.values[name]:.3f}" for name in self.losses if name in self.values]

    def _loss(self) -> str:
        return f"loss {self.values['loss']:.3f}" if "loss" in self.values else ""

    def _left(self) -> float | None:
        return self.clock.left(self.state.step, self.steps)

    def _rows(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        texts = [
            [*self._speed(), self.doing],
            [self._loss(), *self._losses()],
            ["val/baseline", *(f"{name} {self.scores[name]:.3f}/{value:.3f}" for name, value in self.baselines.items())]
            if self.baselines
            else [],
        ]
        lines = ["  ".join(filter(None, parts)) for parts in texts]
        rows = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines if line]
        return Group(bar_row(self._epoch, self.state.step, self.steps, self._left()), *rows)

    def _line(self) -> str:
        left = self._left()
        parts = [self._epoch, f"step {self.state.step}/{self.steps}", *self._speed(), self._loss()]
        return "  ".join(filter(None, [*parts, "" if left is None else f"{time_text(left)} left"]))
