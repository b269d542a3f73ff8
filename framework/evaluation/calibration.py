"""Makes the confidence of a model true: one temperature, fitted on validation and stored with the model.

Source:
    Guo et al. 2017, arXiv 1706.04599, section 4.2 (temperature scaling), here of each next token of the references.

Shapes: B exams, T tokens, M tokens of all references, W words in the vocabulary, G temperatures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from framework.checkpoint.export import CALIBRATION, COPY, publish_model
from framework.exam import PAD
from framework.models.generation import next_token_logprobs
from framework.runtime.files import read_object

STEP = 2 ** (1 / 8)
TEMPERATURES = [STEP**power for power in range(-16, 25)]  # 0.25 to 8
UNCHANGED = TEMPERATURES.index(1.0)
BLOCK = 512  # tokens at a time, whose probabilities of all words are in memory


class Calibration(TypedDict):
    """A temperature, and how it was found.

    Attributes:
        temperature: that the logits of the next token are divided by; above 1, the model was too sure.
        exams, tokens: of validation.
        nats_before, nats_after: mean negative log-likelihood of a token, without and with the temperature.
    """

    temperature: Annotated[float, Field(gt=0)]
    exams: int
    tokens: int
    nats_before: float
    nats_after: float


class TemperatureFit:
    """Negative log-likelihood of references at each temperature."""

    def __init__(self) -> None:
        self.nats_G, self.exams, self.tokens = np.zeros(len(TEMPERATURES)), 0, 0

    def add(self, logits_BTW: Tensor, report_BT: Tensor) -> None:
        """Adds a batch.

        Args:
            logits_BTW: of each token after the first, given those before it.
            report_BT: BOS, tokens, EOS, then PAD.
        """
        target_BT = report_BT[:, 1:]
        there_BT = target_BT != PAD
        for logits_MW, target_M in zip(logits_BTW[there_BT].split(BLOCK), target_BT[there_BT].split(BLOCK)):
            logprobs_MW = next_token_logprobs(logits_MW)
            known_M = logprobs_MW.gather(1, target_M[:, None])[:, 0].isfinite()  # not a word outside the vocabulary
            logprobs_MW, target_M = logprobs_MW[known_M], target_M[known_M]
            for place, temperature in enumerate(TEMPERATURES):
                at_MW = (logprobs_MW / temperature).log_softmax(1)
                self.nats_G[place] -= float(at_MW.gather(1, target_M[:, None]).double().sum())
            self.tokens += len(target_M)
        self.exams += len(report_BT)


def calibration_of(fits: Sequence[TemperatureFit]) -> Calibration:
    """The temperature at which the references of all fits are most likely: the minimum of a parabola through the best
    of `TEMPERATURES` and its neighbours.
    """
    tokens, exams = sum(fit.tokens for fit in fits), sum(fit.exams for fit in fits)
    nats_G = np.sum([fit.nats_G for fit in fits], axis=0) / max(1, tokens)
    best = min(max(int(nats_G.argmin()), 1), len(nats_G) - 2)
    before, here, after = nats_G[best - 1 : best + 2]
    bend = before - 2 * here + after
    shift = float(np.clip((before - after) / (2 * bend), -1, 1)) if bend > 0 else 0.0
    nats = here - shift * (before - after) / 2 + shift**2 * bend / 2
    return Calibration(
        temperature=round(TEMPERATURES[best] * STEP**shift, 6),
        exams=exams,
        tokens=tokens,
        nats_before=round(float(nats_G[UNCHANGED]), 6),
        nats_after=round(float(nats), 6),
    )


def read_calibration(model: Path) -> Calibration | None:
    """The calibration of an exported model; None if it has none.

    Raises:
        UserError: `damaged-file`.
    """
    path = model / CALIBRATION
    return read_object(path, COPY, Calibration) if path.is_file() else None


def model_temperature(model: Path) -> float | None:
    """The temperature of an exported model; None if it is not calibrated."""
    calibration = read_calibration(model)
    return None if calibration is None else calibration["temperature"]


def write_calibration(model: Path, calibration: Calibration) -> None:
    """Stores a calibration with an exported model, whose manifest has its hash."""
    publish_model(model, model, {CALIBRATION: json.dumps(calibration).encode()})
