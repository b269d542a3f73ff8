"""Averages and ensembles of the checkpoints that a run keeps, and of other runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from harness import ROOT, problem
from PIL import Image
from safetensors.torch import load_file, save_file

import sonoscribe
from framework.build import build_dataset, build_task, build_tokenizer, load_exams, run_recipe
from framework.checkpoint.export import ModelTexts, write_manifest
from framework.checkpoint.format import (
    CheckpointError,
    RetentionPolicy,
    Snapshot,
    TrainState,
    checkpoints_of,
    write_checkpoint,
)
from framework.data.leakage import patients_seen
from framework.evaluation.evaluate import evaluate_run
from framework.evaluation.model_selection import BEST, ModelSelection, average, best_checkpoints, load_models
from framework.evaluation.predict import predict
from framework.exam import Batch
from framework.models.ensemble import Ensemble
from framework.models.generation import generate
from framework.recipe import load_recipe, portable
from framework.registry.trust import trust
from framework.run.init_from import find_source
from framework.runtime.files import read_lines

SCORES = {1: 0.3, 2: 0.9, 3: 0.1, 4: 0.6, 5: 0.5}  # by step


def make_run(folder: Path, *keys: str, scores: dict[int, float] = SCORES, seed: int = 0) -> Path:
    """A run as training leaves it; its models begin at different weights and were never trained."""
    few = ["data.dataset.exams=16", "data.dataset.val_exams=2", "data.dataset.test_exams=4", "distiller.topics=2"]
    words = [
        *few,
        "evaluate.max_length=12",
        "checkpoint.keep_best=3",
        f"data.cache_dir={folder.parent / 'cache'}",
        *keys,
    ]
    recipe = load_recipe(ROOT / "recipes" / "smoke.yaml", words)
    trust(recipe.plugin_files)
    tokenizer = build_tokenizer(recipe, [exam.report for exam in load_exams(build_dataset(recipe))["train"]], None)
    val_scores: dict[str, float] = {}
    for step, score in scores.items():
        val_scores[f"step-{step}"] = score
        best = max(val_scores, key=lambda name: val_scores[name])
        seeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed + step})})
        weights = {
            n: value.clone()
            for n, value in build_task(seeded, tokenizer, None, None, trained=True).state_dict().items()
        }
        for value in weights.values():
            value *= 2.5  # at its first weights a decoder finds all words alike, which would test nothing
        train_state = TrainState(step=step, val_scores=dict(val_scores), best_step=int(best.removeprefix("step-")))
        snapshot = Snapshot(train_state, weights, weights, ModelTexts(tokenizer, portable(recipe)))
        write_checkpoint(
            folder / "checkpoints", snapshot, RetentionPolicy(2, recipe.checkpoint.keep_best, higher_is_better=True)
        )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "smoke" / "first")


@pytest.fixture(scope="module")
def other(run: Path) -> Path:
    return make_run(run.with_name("second"), seed=100)


@pytest.fixture(scope="module")
def image(run: Path) -> Path:
    path = run.parent / "view.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)).save(path)
    return path


def model_file(checkpoint: Path) -> Path:
    return checkpoint / "model" / "model.safetensors"


def test_the_best_and_the_last_are_kept_with_their_models(run: Path) -> None:
    assert [path.name for path in checkpoints_of(run / "checkpoints")] == ["step-5", "step-4", "step-2"]
    for path in checkpoints_of(run / "checkpoints"):
        assert {file.name for file in (path / "model").iterdir()} == {
            "model.safetensors",
            "tokenizer.json",
            "recipe.yaml",
            "manifest.json",
        }
    assert model_file(run / "checkpoints" / "step-2").samefile(run / "model" / "model.safetensors")
    found = best_checkpoints(run, 3, "--average")
    assert [(path.name, value) for path, value in found.items()] == [("step-2", 0.9), ("step-4", 0.6), ("step-5", 0.5)]


def test_a_resumed_run_that_keeps_more_keeps_the_best_that_are_left(tmp_path: Path) -> None:
    scores = {1: 0.9, 2: 0.8, 3: 0.7, 4: 0.1, 5: 0.2}
    folder = make_run(tmp_path / "run", "checkpoint.keep_best=1", scores=scores) / "checkpoints"
    assert [path.name for path in checkpoints_of(folder)] == ["step-5", "step-4", "step-1"]
    recipe, val_scores = run_recipe(folder.parent), {f"step-{step}": value for step, value in scores.items()}
    more = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"keep_best": 3})})
    for step, value in ((6, 0.3), (7, 0.05), (8, 0.04)):
        val_scores[f"step-{step}"] = value
        weights = load_file(model_file(folder / "step-1"))
        texts = ModelTexts(build_tokenizer(recipe, [], folder.parent / "model"), portable(more))
        train_state = TrainState(step=step, val_scores=dict(val_scores), best_step=1)
        write_checkpoint(
            folder, Snapshot(train_state, weights, weights, texts), RetentionPolicy(2, 3, higher_is_better=True)
        )
    found = best_checkpoints(folder.parent, 3, "--average")
    assert [path.name for path in found] == ["step-1", "step-6", "step-5"], "steps 2 and 3 went while one was kept"


@pytest.mark.parametrize("names", ["names = ('errors',)", "names = tuple(['errors'])"], ids=["read", "built"])
def test_if_a_lower_score_is_better_the_lowest_are_best(tmp_path: Path, names: str) -> None:
    plugin = (
        "from framework.registry import register\n\n\n"
        "@register('metric', 'errors')\nclass Errors:\n    '''Errors.'''\n\n"
        f"    {names}\n    by_words = True\n    higher_is_better = False\n"
    )
    (tmp_path / "errors.py").write_text(plugin)
    keys = [f"plugins=[{tmp_path / 'errors.py'}]", "evaluate.metrics=[bleu, errors]", "evaluate.monitor=val/errors"]
    lower = make_run(tmp_path / "run", *keys, "checkpoint.keep_best=2", scores={1: 0.3, 2: 0.1})
    assert [path.name for path in best_checkpoints(lower, 2, "--average")] == ["step-2", "step-1"]


def test_the_average_of_identical_models_is_the_model(run: Path, tmp_path: Path) -> None:
    one = run / "checkpoints" / "step-2" / "model"
    for count in (2, 3, 7):
        mean, weights = average([one] * count), load_file(one / "model.safetensors")
        assert mean.keys() == weights.keys() and all(torch.equal(mean[name], weights[name]) for name in weights)


def test_an_average_is_the_mean_of_each_weight_with_the_counters_of_the_best_model(tmp_path: Path) -> None:
    rows = [torch.tensor([1.0, 2.0, -3.0]), torch.tensor([2.0, 4.0, 1.0]), torch.tensor([3.0, 0.0, 0.5])]
    models = [tmp_path / str(number) for number in range(3)]
    for number, (folder, row) in enumerate(zip(models, rows)):
        folder.mkdir()
        tensors = {"encoder.w": row, "encoder.half": row.bfloat16(), "encoder.batches": torch.tensor(10 - number)}
        save_file(tensors, folder / "model.safetensors")
    found = average(models)
    assert torch.equal(found["encoder.w"], torch.tensor([2.0, 2.0, -0.5]))
    assert found["encoder.half"].dtype == torch.bfloat16
    assert found["encoder.batches"].dtype == torch.int64 and found["encoder.batches"] == 10


def test_an_average_writes_with_the_mean_weights(run: Path) -> None:
    recipe = run_recipe(run)
    task, lines = load_models(run, recipe, build_tokenizer(recipe, [], run / "model"), ModelSelection(average=3))
    files = [load_file(model_file(run / "checkpoints" / f"step-{step}")) for step in (2, 4, 5)]
    for name, weight in task.state_dict().items():
        assert weight == pytest.approx(torch.stack([file[name] for file in files]).mean(0), abs=1e-6), name
    assert len(lines) == 1 and [word in lines[0] for word in ("step-2 (0.9000)", "step-4", "step-5")] == [True] * 3


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_ensemble_of_a_run_with_itself_generates_the_reports_of_the_run(
    run: Path, image: Path, num_beams: int
) -> None:
    assert predict(run, [image], num_beams, ModelSelection(others=(run,))) == predict(run, [image], num_beams)


def test_selections_write_different_reports_and_each_sees_the_views(run: Path, other: Path, image: Path) -> None:
    alone = predict(run, [image])
    selections = [
        ModelSelection(average=3),
        ModelSelection(ensemble=3),
        ModelSelection(others=(other,)),
        ModelSelection(average=2, others=(other,)),
    ]
    assert len({alone, *(predict(run, [image], None, selection) for selection in selections)}) == 5


def test_an_ensemble_has_the_members_of_every_run(run: Path, other: Path) -> None:
    recipe = run_recipe(run)
    tokenizer = build_tokenizer(recipe, [], run / "model")
    task, lines = load_models(run, recipe, tokenizer, ModelSelection(ensemble=3, others=(other,)))
    assert isinstance(task, Ensemble) and len(task.members) == len(lines) == 6
    wanted = [model_file(each / "checkpoints" / f"step-{step}") for each in (run, other) for step in (2, 4, 5)]
    for member, path in zip(task.members, wanted):
        weights = load_file(path)
        assert all(torch.equal(value, weights[name]) for name, value in member.state_dict().items())
    exam = Batch(["a"], torch.rand(1, 2, 1, 32, 32), torch.ones(1, 2, dtype=torch.bool), torch.empty(1, 0))
    with torch.no_grad():
        features = task.eval().features(exam)
        assert all(
            torch.equal(own.pooled_BD, member.features(exam).pooled_BD)
            for own, member in zip(features.members, task.members)
        )
        assert len(generate(task.decoder, features, max_length=5, num_beams=2)) == 1


def test_scores_of_another_selection_are_stored_separately(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = evaluate_run(run, "test")
    own = {
        path: path.read_bytes()
        for path in (run / "scores.json", run / "predictions" / "test.jsonl", run / "report.html")
    }
    evaluate_run(run, "test", ModelSelection(average=3))
    assert own == {path: path.read_bytes() for path in own}, "the run's own are as they were"
    stored = json.loads((run / "scores-average-3.json").read_text())
    assert stored.keys() == {"segmentation", "test"} and "step-4 (0.6000)" in stored["test"]["written_by"][0]
    lines = read_lines(run / "predictions" / "test-average-3.jsonl")
    assert len(lines) == stored["test"]["model"]["exams"] == 4
    assert stored["test"]["fixed_report"] == scores["fixed_report"], "baselines depend on the data only"
    printed = capsys.readouterr().out
    assert str(run / "scores-average-3.json") in printed and "Scores on test, average-3" in printed
    # Intervals are in the file, the table and the page.
    low, high = (scores[name]["bleu_4"] for name in ("model_low", "model_high"))
    assert low <= scores["model"]["bleu_4"] <= high
    assert json.loads(own[run / "scores.json"])["test"]["model_low"]["bleu_4"] == low
    assert (
        printed.count(f"{low:.3f}, {high:.3f}") >= 1 and f"[{low:.3f}, {high:.3f}]" in (run / "report.html").read_text()
    )


def test_augmented_copies_change_reports_in_evaluation_and_prediction_alike(tmp_path: Path, image: Path) -> None:
    folder = make_run(
        tmp_path / "runs" / "a", "data.augment={name: jitter, degrees: 90}", "evaluate.augmented_copies=3"
    )
    assert predict(folder, [str(image)]) == predict(folder, [str(image)])
    own = evaluate_run(folder, "test")
    plain = evaluate_run(folder, "test", overrides=["evaluate.augmented_copies=0"], name="plain")
    rows = [read_lines(folder / "predictions" / name) for name in ("test.jsonl", "test-plain.jsonl")]
    assert rows[0] != rows[1] and own["fixed_report"] == plain["fixed_report"]


def test_a_model_that_was_trained_on_patients_of_the_split_is_not_scored_on_it(
    run: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = run_recipe(other)
    exams: Any = {split: SimpleNamespace(exams=rows) for split, rows in load_exams(build_dataset(recipe)).items()}
    second = tmp_path / "second"
    shutil.copytree(other, second)
    notes, asked = second / "model" / "patients.json", ModelSelection(others=(second,))

    def write_patients(**splits: str) -> None:
        exams_of = {split: exams[where] for split, where in splits.items()}
        notes.write_text(json.dumps(patients_seen(recipe, exams_of, None)))
        write_manifest(second / "model")

    write_patients(train="test", val="val")  # as in another fold
    with problem("split-leak", f"--with {second}") as found:
        evaluate_run(run, "test", asked)
    assert "4 patients" in found[0].found and "train" in found[0].found
    with problem("split-leak", "evaluate"):
        evaluate_run(second, "test")
    evaluate_run(run, "val", asked)
    write_patients(train="train", val="test")
    with problem("split-leak", f"--with {second}"):
        evaluate_run(run, "test", asked)
    write_patients(train="train", val="val")
    evaluate_run(run, "test", asked)
    assert "notice: --with" not in capsys.readouterr().out
    notes.write_text(json.dumps({"datasets": ["manifest"], "train": [], "val": []}))
    write_manifest(second / "model")
    evaluate_run(run, "val", asked)
    assert f"notice: --with {second}" in capsys.readouterr().out


def test_evaluation_does_not_overwrite_the_topics_of_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    evaluate_run(tmp_path, "val")
    topics = json.loads((tmp_path / "topics.json").read_text())
    assert "topics" not in capsys.readouterr().out
    topics["labels"]["train"][0] = 1 - topics["labels"]["train"][0]
    (tmp_path / "topics.json").write_text(json.dumps(topics))
    evaluate_run(tmp_path, "val")
    exams = len(topics["labels"]["train"])
    assert f"topics.json: 1 of {exams} training exams have another topic" in capsys.readouterr().out
    assert json.loads((tmp_path / "topics.json").read_text()) == topics


def test_models_that_are_missing_or_do_not_fit_are_refused(run: Path, other: Path, image: Path, tmp_path: Path) -> None:
    def refused(code: str, place: str, selection: ModelSelection, which: Path = run) -> str:
        with problem(code, place) as found:
            predict(which, [image], None, selection)
        return str(found[0])

    assert "keep_best=4" in refused("no-checkpoint", "--average", ModelSelection(average=4))
    refused("no-checkpoint", "--ensemble", ModelSelection(ensemble=5))
    few = make_run(tmp_path / "few", scores={1: 0.5, 2: 0.4})
    assert "2 checkpoints" in refused("no-checkpoint", "--average", ModelSelection(average=3), few)
    refused("no-model", str(tmp_path), ModelSelection(others=(tmp_path,)))
    shutil.copytree(run / "model", tmp_path / "alone" / "model")
    refused("no-checkpoint", "--average", ModelSelection(average=2), tmp_path / "alone")
    shutil.copytree(run, tmp_path / "damaged")
    file = model_file(tmp_path / "damaged" / "checkpoints" / "step-4")
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with problem("damaged-checkpoint", "step-4", CheckpointError):
        predict(tmp_path / "damaged", [image], None, ModelSelection(average=2))
    runs = tmp_path / "runs"
    one = {1: 0.5}
    words = make_run(runs / "words", "data.dataset.exams=24", "data.dataset.organ=liver", scores=one)
    refused("does-not-fit", f"--with {words}", ModelSelection(others=(words,)))
    size = make_run(runs / "size", "data.image_size=48", scores=one)
    assert "48 px" in refused("does-not-fit", f"--with {size}", ModelSelection(others=(size,)))
    short = make_run(runs / "short", "evaluate.max_length=8", scores=one)
    assert "8 tokens" in refused("does-not-fit", f"--with {short}", ModelSelection(others=(short,)))
    with problem("conflicting-settings", "--average"):
        ModelSelection(average=2, ensemble=2)


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml", "tokenizer.json", "manifest.json"])
def test_a_file_of_a_model_that_was_changed_is_named_at_every_door(
    run: Path, image: Path, tmp_path: Path, name: str
) -> None:
    """A flipped byte in the weights changed reports without a word."""
    copy = tmp_path / "copy"
    shutil.copytree(run / "model", copy / "model")
    assert sonoscribe.load(copy).report([image]) == predict(copy / "model", [image]) == predict(run, [image])
    file = copy / "model" / name
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    for folder in (copy, copy / "model"):
        with problem("damaged-file", "model/"):
            sonoscribe.load(folder)
    for use in (
        lambda: predict(run, [image], None, ModelSelection(others=(copy,))),
        lambda: evaluate_run(copy, "val"),
        lambda: evaluate_run(run, "val", ModelSelection(others=(copy,))),
        lambda: find_source(str(copy)),
    ):
        with problem("damaged-file", "model/" if name == "manifest.json" else str(file)):
            use()


def test_files_that_a_model_was_saved_without_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    (tmp_path / "model" / "decoder.json").write_text("{}")
    (tmp_path / "model" / "README.md").write_text("mine")
    with problem("damaged-file", "decoder.json") as found:
        sonoscribe.load(tmp_path)
    assert len(found) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_with_their_name(run: Path, tmp_path: Path, value: float) -> None:
    """They gave an empty report and exit code 0."""
    shutil.copytree(run / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = next(name for name in weights if name.startswith("decoder") and name.endswith("weight"))
    weights[name].view(-1)[1] = value
    save_file(weights, tmp_path / "model" / "model.safetensors")
    write_manifest(tmp_path / "model")
    with problem("non-finite", "model.safetensors") as found:
        sonoscribe.load(tmp_path)
    assert name in found[0].found


def test_labels_of_selections_differ(run: Path, other: Path) -> None:
    assert BEST.label == ""
    assert ModelSelection(ensemble=3).label == "ensemble-3"
    assert ModelSelection(average=2, others=(other, run)).label == "average-2-with-smoke-second-with-smoke-first"
