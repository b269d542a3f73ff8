"""Pretraining of the encoder without reports, and a run that starts from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import ROOT, launch, problem, records

from framework.evaluation.predict import Predictor

EXAMS = ["data.dataset.exams=32", "data.dataset.val_exams=9", "data.dataset.test_exams=7", "data.dataset.size=64"]
SMALL = [
    *EXAMS, "data.image_size=32", "train.batch_size=8", "train.epochs=3", "train.log_every=1", "evaluate.batch_size=4",
    "model.encoder={_delete_: true, name: tiny_cnn, width: 32}", "model.decoder.width=24",
]  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(work: Path) -> Path:
    """The folder of a finished run of recipes/pretrain.yaml."""
    keys = [*SMALL, "optimizer.lr=3e-3", "losses.vicreg.width=64", "run.name=images"]
    launch(str(ROOT / "recipes" / "pretrain.yaml"), *keys, cwd=work)
    return work / "runs" / "pretrain" / "images"


def test_the_loss_of_the_validation_images_selects_the_model_and_no_report_is_written(pretrained: Path) -> None:
    values, scores = records(pretrained, "val/vicreg"), json.loads((pretrained / "scores.json").read_text())
    assert len(values) == 3
    assert scores["val"]["model"]["vicreg"] == pytest.approx(min(values.values()), abs=1e-4)
    assert scores["test"]["model"]["exams"] == 7 and set(scores["test"]) == {"model"}
    assert (pretrained / "predictions" / "test.jsonl").read_text() == ""
    assert "the decoder was not trained" in (pretrained / "model" / "README.md").read_text()
    assert "val/vicreg" in (pretrained / "report.html").read_text()


def test_the_loss_falls_and_the_spread_of_the_features_is_recorded(pretrained: Path) -> None:
    losses = list(records(pretrained, "train/vicreg").values())
    assert sum(losses[-3:]) < sum(losses[:3])
    for name in ("train/vicreg/feature_std", "train/vicreg/embedding_std", "val/vicreg/feature_std"):
        assert min(records(pretrained, name).values()) > 0


def test_a_model_that_was_trained_without_reports_writes_none(pretrained: Path, work: Path) -> None:
    done = launch("evaluate", str(pretrained), cwd=work, check=False)
    assert done.returncode == 2 and "evaluate.metrics" in done.stderr and "[missing-key]" in done.stderr
    with problem("no-model", str(pretrained / "model")):
        Predictor(pretrained)


def test_a_run_starts_from_the_encoder_with_a_new_decoder(pretrained: Path, work: Path) -> None:
    keys = [*SMALL, "model.decoder.width=48", "distiller.topics=2", f"init_from={pretrained}", "run.name=reports"]
    done = launch(str(ROOT / "recipes" / "breast.yaml"), *keys, "evaluate.max_length=8", cwd=work)
    assert "random: decoder (not trained there)" in done.stdout
    run = work / "runs" / "breast" / "reports"
    origin = json.loads((run / "environment.json").read_text())["launch"]["init_from"]
    assert origin["tensors"] == 17 and Path(origin["model"]) == (pretrained / "model").resolve()
    stored, earlier = (json.loads((each / "model" / "patients.json").read_text()) for each in (run, pretrained))
    assert set(earlier["train"]) <= set(stored["train"])


def test_two_processes_train_and_validate_as_one(pretrained: Path, work: Path) -> None:
    """Until differences of rounding have grown."""
    keys = [*SMALL, "optimizer.lr=3e-3", "losses.vicreg.width=64", "run.name=two"]
    launch(str(ROOT / "recipes" / "pretrain.yaml"), *keys, cwd=work, processes=2, by="torchrun")
    for name in ("train/vicreg", "val/vicreg"):
        one, two = (records(run, name) for run in (pretrained, work / "runs" / "pretrain" / "two"))
        assert one.keys() == two.keys()
        assert [two[step] for step in two if step <= 4] == pytest.approx(
            [one[step] for step in one if step <= 4], abs=1e-3
        )
