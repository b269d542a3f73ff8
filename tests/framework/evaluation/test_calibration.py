"""The temperature of a model: found from its references, stored with it, and used wherever it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from harness import problem

from framework.checkpoint.export import CALIBRATION, MANIFEST, verify_model
from framework.evaluation.calibration import (
    Calibration,
    TemperatureFit,
    calibration_of,
    model_temperature,
    read_calibration,
    write_calibration,
)
from framework.exam import BOS, EOS, PAD, UNK

WORDS = 12


def drawn_from(temperature: float, exams: int = 200, length: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a model that is too sure by this factor, and reports that are drawn as they should be."""
    random = torch.Generator().manual_seed(0)
    logits_BTW = torch.randn(exams, length, WORDS, generator=random) * 2
    logits_BTW[..., [PAD, BOS, EOS, UNK]] = float("-inf")
    target_BT = torch.multinomial(logits_BTW.flatten(0, 1).softmax(-1), 1, generator=random).view(exams, length)
    report_BT = torch.cat([torch.full((exams, 1), BOS), target_BT], 1)
    return logits_BTW * temperature, report_BT


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3, 4.0])
def test_the_temperature_of_a_model_that_is_too_sure_is_found(temperature: float) -> None:
    fit = TemperatureFit()
    fit.add(*drawn_from(temperature))
    found = calibration_of([fit])
    assert found["temperature"] == pytest.approx(temperature, rel=0.04)
    assert (found["exams"], found["tokens"]) == (200, 4000) and found["nats_after"] <= found["nats_before"] + 1e-6


def test_processes_find_what_one_finds() -> None:
    logits_BTW, report_BT = drawn_from(1.5)
    whole, parts = TemperatureFit(), [TemperatureFit(), TemperatureFit()]
    whole.add(logits_BTW, report_BT)
    for part, own in zip(parts, (slice(0, 70), slice(70, 200))):
        part.add(logits_BTW[own], report_BT[own])
    assert calibration_of(parts) == calibration_of([whole])


def test_padding_and_words_outside_the_vocabulary_do_not_count() -> None:
    logits_BTW, report_BT = drawn_from(1.0, exams=4)
    report_BT[:, 5], report_BT[:, 15:] = UNK, PAD
    fit = TemperatureFit()
    fit.add(logits_BTW, report_BT)
    assert calibration_of([fit])["tokens"] == 4 * 13


def test_a_calibration_is_a_file_of_the_model_with_its_hash(smoke_run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(smoke_run / "model", model)
    written = Calibration(temperature=1.25, exams=4, tokens=40, nats_before=1.0, nats_after=0.9)
    write_calibration(model, written)
    verify_model(model)
    assert CALIBRATION in json.loads((model / MANIFEST).read_text()) and read_calibration(model) == written
    assert model_temperature(model) == 1.25
    (model / CALIBRATION).write_text((model / CALIBRATION).read_text().replace("1.25", "1.26"))
    with problem("damaged-file", CALIBRATION):
        verify_model(model)


@pytest.mark.parametrize("temperature", ["0", "-1", "NaN", '"1"', "null"])
def test_a_temperature_that_is_none_is_refused(temperature: str, tmp_path: Path) -> None:
    text = f'{{"temperature": {temperature}, "exams": 1, "tokens": 1, "nats_before": 1.0, "nats_after": 1.0}}'
    (tmp_path / CALIBRATION).write_text(text)
    with problem("damaged-file", CALIBRATION):
        read_calibration(tmp_path)


def test_a_run_ends_with_a_calibrated_model(smoke_run: Path) -> None:
    found = read_calibration(smoke_run / "model")
    assert found is not None and found["exams"] == 16
    assert found["nats_after"] <= found["nats_before"]
