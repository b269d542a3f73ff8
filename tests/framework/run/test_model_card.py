"""The card of a model: what it says, when it is written again, and that it is no part of the model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT

import sonoscribe
from framework.checkpoint.export import CARD, MANIFEST, WEIGHTS, verify_model, write_manifest
from framework.checkpoint.format import checkpoints_of, verify_checkpoint
from framework.evaluation.evaluate import evaluate_run
from framework.recipe import load_recipe, portable
from framework.run.model_card import model_card
from framework.runtime.files import digest

IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)


@pytest.fixture
def run(smoke_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(smoke_run, tmp_path / "run")
    return tmp_path / "run"


def test_the_card_has_data_scores_hash_and_lines_that_load_the_model(run: Path) -> None:
    text, scores = (run / "model" / CARD).read_text(), json.loads((run / "scores.json").read_text())["test"]
    assert "64 exams in `train`, 16 exams in `val`, 16 exams in `test`" in text
    assert "not for diagnosis" in text and "Apache-2.0" in text and "eprint = {2406.00644}" in text
    assert digest(run / "model" / WEIGHTS) in text
    (row,) = re.findall(r"\| `bleu_4` \| (\S+) \| (\S+) to (\S+) \| (\S+) \(", text)
    versus = scores["versus_strongest_baseline"]["bleu_4"]["baseline"]
    assert row == tuple(f"{scores[name]['bleu_4']:.3f}" for name in ("model", "model_low", "model_high", versus))
    (load,) = re.findall(r"^model = (.*)$", text, re.MULTILINE)
    model = eval(load.replace("THIS_FOLDER", str(run / "model")), {"sonoscribe": sonoscribe})
    assert model.report([IMAGE])


def test_evaluation_writes_the_card_again_and_a_changed_card_damages_nothing(
    run: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)  # its image cache
    card = run / "model" / CARD
    before = card.read_text()
    card.write_text("mine")
    verify_model(run / "model")
    evaluate_run(run, "test")
    assert card.read_text() == before


def test_no_manifest_has_the_card(run: Path) -> None:
    for checkpoint in checkpoints_of(run / "checkpoints"):
        card = checkpoint / "model" / CARD
        assert "Not scored yet." in card.read_text()
        card.unlink()
        assert verify_checkpoint(checkpoint) is None
    assert CARD not in json.loads((run / "model" / MANIFEST).read_text())


def test_the_folder_of_a_model_alone_is_enough_elsewhere(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sonoscribe.load(run).report([IMAGE])
    (tmp_path / "elsewhere").mkdir()
    model = shutil.move(run / "model", tmp_path / "elsewhere" / "mine")
    shutil.rmtree(run)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sonoscribe.load(model).report([IMAGE]) == sonoscribe.load("mine").report([IMAGE]) == expected


def test_a_plugin_file_that_only_trained_is_not_needed_elsewhere(run: Path, tmp_path: Path) -> None:
    """Another machine: a new process in an empty folder, of a user who trusts nothing, without the loss's package."""
    file = tmp_path / "costly.py"
    file.write_text(
        "import a_package_that_only_training_has\nfrom framework.registry import register\n\n\n"
        '@register("loss", "costly")\nclass Costly:\n    """Nothing."""\n\n    needs = ("logits",)\n'
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    model = Path(shutil.move(run / "model", elsewhere / "mine"))
    portable(load_recipe("smoke", [f"plugins={file}", "+losses.costly={weight: 1.0}"])).write(model)
    write_manifest(model)
    assert "plugins/costly.py" in json.loads((model / MANIFEST).read_text())
    file.unlink()
    np.save(elsewhere / "image.npy", IMAGE)
    (elsewhere / "empty").mkdir()
    program = "import numpy, sonoscribe; print(sonoscribe.load('../mine').report([numpy.load('../image.npy')]))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=elsewhere / "empty",
        env={"PYTHONPATH": str(ROOT), "HOME": str(elsewhere), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{sonoscribe.load(model).report([IMAGE])}\n"
    assert list((elsewhere / "empty").iterdir()) == []


def test_plugin_files_and_earlier_data_sets_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        'from framework.registry import register\n\n\n@register("schedule", "mine")\ndef mine():\n    """Mine."""\n'
    )
    recipe = load_recipe("smoke", [f"plugins={file}"])
    text = model_card(recipe, {"train": 3}, ["busbra", "phantom"], "0" * 64)
    assert "trust=True" in text and "mine.py" in text and "Earlier stages: busbra." in text
