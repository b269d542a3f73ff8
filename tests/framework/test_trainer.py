"""The loop as users meet it: a run from the command line, its files, its scores, learning."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from harness import MEASURED, ROOT, launch, records
from PIL import Image

from framework.runtime.files import read_lines
from framework.scoring.table import BASELINES

SMOKE = str(ROOT / "recipes" / "smoke.yaml")


def test_a_run_writes_all_its_files(smoke_run: Path) -> None:
    expected = {
        "recipe.yaml", "overrides.txt", "environment.json", "topics.json", "topics.png", "metrics.jsonl",
        "checkpoints", "model", "predictions", "scores.json", "report.html", "training_exams.safetensors",
        "nearest_exams.json",
    }  # fmt: skip
    assert expected <= {path.name for path in smoke_run.iterdir()}
    assert list(smoke_run.glob("events.out.tfevents*"))
    assert {path.name for path in (smoke_run / "model").iterdir()} == {
        "model.safetensors",
        "features.safetensors",
        "tokenizer.json",
        "recipe.yaml",
        "patients.json",
        "calibration.json",
        "topic_head.safetensors",
        "manifest.json",
        "README.md",
    }


def test_the_loss_is_recorded_every_log_every_steps_and_falls(smoke_run: Path) -> None:
    losses = records(smoke_run, "train/loss")
    assert sorted(losses) == list(range(1, len(losses) + 1)) and len(losses) == 24
    values = list(losses.values())
    assert sum(values[-5:]) < 0.8 * sum(values[:5])
    assert len(records(smoke_run, "val/bleu_4")) == 3
    names = {json.loads(line)["name"] for line in read_lines(smoke_run / "metrics.jsonl")}
    assert names >= MEASURED - {"train/mfu"}, "which has a value on known GPUs only"


def test_scores_are_shown_beside_baselines_and_oracles(smoke_run: Path) -> None:
    scores = json.loads((smoke_run / "scores.json").read_text())
    rows = {"model", "fixed_report", "random_report", "nearest_image", "topic_oracle", "retrieval_oracle", "rewording"}
    assert rows <= set(scores["test"])
    assert scores["test"]["retrieval_oracle"]["bleu_4"] > scores["test"]["random_report"]["bleu_4"]
    assert scores["segmentation"].startswith("words")


def test_scores_of_baselines_are_recorded_and_stand_beside_those_of_validation(smoke_run: Path, work: Path) -> None:
    scores = json.loads((smoke_run / "scores.json").read_text())
    for row in BASELINES:
        (recorded,) = records(smoke_run, f"final/test/{row}/bleu_4").values()
        assert recorded == scores["test"][row]["bleu_4"]
    done = launch(SMOKE, "train.epochs=1", "run.name=beside", cwd=work)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("epoch 1/1")]
    for name in ("bleu_4", "cider", "findings_f1"):
        strongest = max(scores["val"][row][name] for row in BASELINES)
        assert re.search(rf"val/{name} [\d.]+ \(baseline {strongest:.3f}\)", line), line


def test_every_test_exam_has_one_report(smoke_run: Path) -> None:
    rows = [json.loads(line) for line in read_lines(smoke_run / "predictions" / "test.jsonl")]
    scores = json.loads((smoke_run / "scores.json").read_text())
    assert len({row["id"] for row in rows}) == len(rows) == scores["test"]["model"]["exams"]


def test_evaluate_gives_the_same_scores_from_the_model_alone(smoke_run: Path, work: Path) -> None:
    alone = work / "runs" / "smoke" / "alone"
    alone.mkdir(parents=True)
    shutil.copytree(smoke_run / "model", alone / "model")
    launch("evaluate", str(alone), "--split", "test", cwd=work)
    one, two = (json.loads((run / "scores.json").read_text())["test"] for run in (smoke_run, alone))
    assert one == two


def test_predict_writes_the_reports_of_evaluate(smoke_run: Path, work: Path) -> None:
    launch("data", "make", SMOKE, str(work / "made"), cwd=work)
    manifest = json.loads(next((work / "made").glob("*.json")).read_text())
    key = "uid"
    written = {r["id"]: r for r in map(json.loads, read_lines(smoke_run / "predictions" / "test.jsonl"))}
    exam = manifest["test"][0]
    images = [str(next((work / "made").rglob(Path(name).name))) for name in exam["image_path"]]
    done = launch("predict", str(smoke_run), *images, cwd=work)
    assert done.stdout.strip().endswith(written[exam[key]]["prediction"])


def test_the_saved_recipe_trains_to_the_same_losses(smoke_run: Path, work: Path) -> None:
    launch(str(smoke_run / "recipe.yaml"), "run.name=again", cwd=work)
    again = next((work / "runs").glob("*/again"))
    assert records(again, "train/loss") == records(smoke_run, "train/loss")


def test_a_run_is_never_overwritten(smoke_run: Path, work: Path) -> None:
    done = launch(SMOKE, "run.name=first", cwd=work, check=False)
    assert done.returncode == 2 and "[file-exists]" in done.stderr and "Traceback" not in done.stderr


def test_a_tiny_run_learns_its_training_reports(work: Path) -> None:
    keys = [
        "data.dataset.exams=16", "train.epochs=60", "train.batch_size=8", "evaluate.every_epochs=60",
        "distiller.topics=2", "optimizer.lr=3e-3", "model.decoder.width=128", "run.name=learns",
    ]  # fmt: skip
    launch(SMOKE, *keys, cwd=work)
    run = work / "runs" / "smoke" / "learns"
    launch("evaluate", str(run), "--split", "train", cwd=work)
    scores = json.loads((run / "scores.json").read_text())["train"]
    assert scores["model"]["bleu_4"] > 0.95 > scores["fixed_report"]["bleu_4"]


def test_a_model_trained_on_noise_is_not_better_than_a_fixed_report(work: Path, tmp_path: Path) -> None:
    """Images of noise, one short report for half of the exams, and a long one that differs for the others."""
    draw, noise = random.Random(0), np.random.default_rng(0)
    normal = "Glands are normal in size. No mass. No enlarged nodes."
    words = [
        ["left", "right"],
        ["hypoechoic", "anechoic", "isoechoic"],
        ["circumscribed", "spiculated"],
        ["oval", "round"],
    ]
    exams: dict[str, list[dict[str, str]]] = {}
    for split, count in (("train", 240), ("val", 60), ("test", 60)):
        for number in range(count):
            side, echo, margin, shape = map(draw.choice, words)
            finding = f"A {echo} nodule is seen in the {side} lobe. The margin is {margin} and the shape is {shape}."
            name = f"{split}{number}.png"
            Image.fromarray(noise.integers(0, 256, (32, 32), dtype=np.uint8)).save(tmp_path / name)
            report = normal if number % 2 else f"The glands are uneven in echo. {finding} No enlarged nodes."
            exams.setdefault(split, []).append({"id": name, "report": report, "image": name})
    (tmp_path / "exams.json").write_text(json.dumps(exams))
    (tmp_path / "noise.yaml").write_text(f"""
_base_: {ROOT / "recipes" / "smoke.yaml"}
data: {{dataset: {{_delete_: true, name: manifest, file: {tmp_path / "exams.json"}, images: {tmp_path}}}}}
train: {{epochs: 2}}
""")
    done = launch(str(tmp_path / "noise.yaml"), "run.name=noise", cwd=work)
    assert "The model is no better than a fixed report in any score" in done.stdout
    assert "Warning: the model has collapsed" in done.stdout
    scores = json.loads((work / "runs" / "noise" / "noise" / "scores.json").read_text())["test"]
    for name in ("bleu_4", "rouge_l", "cider", "findings_f1"):
        assert scores["model"][name] <= scores[scores["versus_strongest_baseline"][name]["baseline"]][name] + 0.05
    assert records(work / "runs" / "noise" / "noise", "val/different_reports")


def test_early_stopping_ends_a_run_that_does_not_improve(work: Path) -> None:
    monitor = "evaluate.monitor={val/bleu_4: 1, val/cider: 0.5}"
    keys = ["train.early_stopping_patience=2", "optimizer.lr=1e-9", "train.epochs=9", "run.name=stops", monitor]
    done = launch(SMOKE, *keys, cwd=work)
    assert "stopped early: 2 validations without a better val/bleu_4 + 0.5 val/cider" in done.stdout
    bleu, cider, both = (records(work / "runs" / "smoke" / "stops", f"val/{n}") for n in ("bleu_4", "cider", "monitor"))
    assert len(bleu) == 3 and both == pytest.approx({step: bleu[step] + 0.5 * cider[step] for step in bleu}, abs=2e-6)
    assert f"(val/bleu_4 + 0.5 val/cider {max(both.values()):.4f})" in done.stdout
    assert f"val/monitor {both[8]:.3f}" in done.stdout


def test_a_loss_in_a_file_outside_the_package_trains(work: Path, tmp_path: Path) -> None:
    plugin = (ROOT / "docs" / "examples" / "short_reports.py").read_text()
    (tmp_path / "short_reports.py").write_text(plugin)
    recipe = (ROOT / "docs" / "examples" / "short_reports.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(recipe.replace("../../recipes", str(ROOT / "recipes")))
    launch(str(tmp_path / "mine.yaml"), "run.name=own", cwd=work)
    values = records(work / "runs" / "mine" / "own", "train/short_reports")
    assert len(values) == 24 and all(value > 0 for value in values.values())


@pytest.mark.parametrize("key", ["distributed.strategy=zero9", "train.batch_size=1000"])
def test_a_user_error_ends_a_run_without_a_traceback(work: Path, key: str) -> None:
    done = launch(SMOKE, key, cwd=work, check=False)
    assert done.returncode == 2 and key.split("=")[0] in done.stderr and "Traceback" not in done.stderr
