"""Which process generates the reports of which exams, and how often a metric reads them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from harness import ROOT, launch, problem
from PIL import Image

from framework import build
from framework.build import build_dataset
from framework.checkpoint.export import CALIBRATION, publish_model, verify_model
from framework.data.export import write_manifest
from framework.evaluation import evaluate as evaluation
from framework.evaluation.batches import shard_indices
from framework.evaluation.calibration import model_temperature, read_calibration
from framework.evaluation.evaluate import _require_same_model, evaluate_run, evaluate_split, paths_from
from framework.evaluation.model_selection import ModelSelection
from framework.evaluation.predict import Predictor, predict
from framework.exam import ExamSource, Pair
from framework.recipe import Recipe, load_recipe
from framework.runtime.errors import UserError
from framework.scoring.baselines import Comparison
from framework.scoring.dependencies import LastResult
from framework.scoring.scorer import Scorer
from framework.scoring.table import BASELINES, CONFIDENCE, CONSTANTS, HIGH, LOW, VARIETY, VERSUS

REPLACES = '''
from framework.registry import register


@register("{kind}", "{name}", replace=True)
class Mine:
    """Nothing."""
'''
LOSS = '''
from pathlib import Path

from plugins.loss.next_token import NextToken

from framework.registry import register

Path({marker!r}).touch()


@register("loss", "mine")
class Mine(NextToken):
    """Next token again."""

    needs = ("logits",)
'''
METRIC = '''
from framework.registry import register


@register("metric", "mine")
class Mine:
    """Words of the reports."""

    names = ("words",)
    higher_is_better = True

    def __call__(self, pairs):
        from counting import count

        return {"words": float(sum(count(pair.prediction) for pair in pairs))}
'''


class Slow:
    """Length over that of the reference, by a model that is slow: it counts how often it reads a report."""

    names = ("slow",)
    by_words = False
    higher_is_better = True

    def __init__(self) -> None:
        self.last, self.reads = LastResult(), Counter[str]()

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        return {name: float(value) for name, value in self.compute(self.per_exam_stats(pairs).sum(0)).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        return self.last.get(pairs, lambda: self.read(pairs))

    def read(self, pairs: Sequence[Pair]) -> np.ndarray:
        self.reads.update(pair.prediction for pair in pairs)
        return np.array([(len(pair.prediction), len(pair.reference)) for pair in pairs], dtype=float)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"slow": sums[..., 0] / sums[..., 1]}


def test_a_metrics_model_reads_the_reports_of_a_split_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exams = SimpleNamespace(
        exams=[SimpleNamespace(id=str(number), patient=str(number), report="x" * 4) for number in range(6)]
    )
    rows = [(exam.id, "m" * (number + 1), exam.report) for number, exam in enumerate(exams.exams)]
    names = (*BASELINES, "rewording")
    monkeypatch.setattr(evaluation, "generate_reports", lambda *_, **keys: rows)
    train = SimpleNamespace(exams=[SimpleNamespace(report="x" * 4)])
    comparisons = SimpleNamespace(train=train, of=lambda _: {name: Comparison([name] * 6) for name in names})
    metric = Slow()
    tokenizer = SimpleNamespace(segment=str.split, language="en", segmentation="words")
    parts = SimpleNamespace(
        exams={"train": train, "val": train, "test": exams},
        tokenizer=tokenizer,
        scorer=Scorer([metric], tokenizer),
        comparisons=comparisons,
        augment=None,
    )
    settings = SimpleNamespace(
        metrics=(metric,), num_beams=1, bootstrap_samples=50, monitored="slow", augmented_copies=0
    )
    recipe = SimpleNamespace(train=SimpleNamespace(seed=1), evaluate=settings)
    read_before: list[int] = []
    scores = evaluate_split(
        SimpleNamespace(num_processes=1),
        SimpleNamespace(encoder=SimpleNamespace(width=4)),
        parts,
        recipe,
        "test",
        tmp_path,
        before_scoring=lambda: read_before.append(metric.reads.total()),
    )
    assert read_before == [0]
    assert list(scores) == ["model", LOW, HIGH, *names, VARIETY, CONSTANTS, VERSUS]
    assert scores[LOW]["slow"] < scores["model"]["slow"] == 21 / 24 < scores[HIGH]["slow"]
    assert {metric.reads[prediction] for _, prediction, _ in rows} == {1}
    assert {metric.reads[name] for name in names} == {6}
    versus = scores[VERSUS]["slow"]
    assert versus["baseline"] in BASELINES and versus["low"] <= versus["difference"] <= versus["high"] < 0
    assert versus["better"] is versus["better_than_fixed"] is False


@pytest.mark.parametrize("processes", range(1, 10))
def test_each_exam_is_in_one_shard_and_shards_differ_by_at_most_one_exam(processes: int) -> None:
    for exams in range(41):
        shards = shard_indices(exams, processes)
        assert len(shards) == processes
        assert sorted(number for shard in shards for number in shard) == list(range(exams))
        lengths = [len(shard) for shard in shards]
        assert max(lengths) - min(lengths) <= 1
        assert lengths[0] == max(lengths), "the first shard sets the number of rounds"


def test_overrides_that_would_change_the_model_are_refused() -> None:
    trained_by = load_recipe("smoke")
    _require_same_model(trained_by, load_recipe("smoke", ["evaluate.num_beams=2", "data.dataset.seed=5"]))
    with problem("ignored-setting", place="optimizer.lr"):
        _require_same_model(trained_by, load_recipe("smoke", ["optimizer.lr=0.5"]))


def test_plugin_files_may_be_added_but_not_replace_a_part_of_the_model(tmp_path: Path) -> None:
    trained_by, now = load_recipe("smoke"), "data.{kind}={{_delete_: true, name: {name}}}"
    for kind, name, place in (("dataset", "phantom", ""), ("tokenizer", "words", "data.tokenizer")):
        file = tmp_path / f"{kind}.py"
        file.write_text(REPLACES.format(kind=kind, name=name))
        recipe = load_recipe("smoke", [f"plugins={file}", now.format(kind=kind, name=name)])
        with problem("ignored-setting", place) if place else nullcontext():
            _require_same_model(trained_by, recipe)


def test_paths_of_the_data_count_from_where_the_run_is_if_they_do_not_exist_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "mine" / "exams.json").touch()
    dataset = ["data.dataset=manifest", "data.dataset.file=mine/exams.json", "data.dataset.images=mine"]
    recipe, run = load_recipe("smoke", dataset), tmp_path / "runs" / "smoke" / "a"
    monkeypatch.chdir(tmp_path / "here")
    assert load_recipe("smoke", [*dataset, *paths_from(run, recipe)]).data.dataset.keys["file"] == str(
        tmp_path / "mine" / "exams.json"
    )
    monkeypatch.chdir(tmp_path)
    assert paths_from(run, recipe) == []


@pytest.mark.parametrize("overrides, name", [((), "b"), (("evaluate.num_beams=2",), "../b")])
def test_names_of_scores_are_file_names_and_belong_to_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: Sequence[str], name: str
) -> None:
    monkeypatch.setattr(evaluation, "verify_model", lambda model: None)
    with problem("wrong-format", place="--name"):
        evaluate_run(tmp_path, "test", overrides=overrides, name=name)


def test_scores_with_overrides_have_files_of_their_own(smoke_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(smoke_run, run)
    before = (run / "scores.json").read_bytes()
    evaluate_run(run, "test", overrides=["data.dataset.seed=5"], name="others")
    assert (run / "scores.json").read_bytes() == before
    assert (
        "test" in json.loads((run / "scores-others.json").read_text())
        and (run / "predictions" / "test-others.jsonl").is_file()
    )


OTHER_SET = "data.dataset={{_delete_: true, name: manifest, file: {}, images: {}}}"


@pytest.fixture
def other_set(smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Path) -> tuple[Path, Path]:
    """A run, and a manifest whose exams have the ids of the run's exams and other reports, except in test."""
    monkeypatch.chdir(work)  # its image cache
    run = shutil.copytree(smoke_run, tmp_path / "run")
    file = write_manifest(build_dataset(load_recipe("smoke")), tmp_path / "other")
    splits = json.loads(file.read_text())
    for entry in [*splits["train"], *splits["val"]]:
        entry["finding"] = "A report of the other hospital."
    file.write_text(json.dumps(splits))
    return Path(run), file


def test_baselines_on_another_data_set_are_made_of_the_training_reports_of_the_model(
    other_set: tuple[Path, Path],
) -> None:
    run, file = other_set
    scores = evaluate_run(run, "test", overrides=[OTHER_SET.format(file, file.parent)], name="others")
    own = json.loads((run / "scores.json").read_text())["test"]
    assert scores[CONSTANTS] == own[CONSTANTS] and scores["random_report"] == own["random_report"]
    assert scores["model"] == own["model"] and scores["topic_oracle"] == own["topic_oracle"]
    assert "rewording" not in scores and "rewording" in own, "of the other data set, which has none"


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_another_data_set_needs_only_the_split_that_is_scored(other_set: tuple[Path, Path], split: str) -> None:
    run, file = other_set
    file.write_text(json.dumps({split: [{**entry, "split": split} for entry in json.loads(file.read_text())["test"]]}))
    scores = evaluate_run(run, split, overrides=[OTHER_SET.format(file, file.parent)], name="others")
    assert scores["model"]["exams"] == 16 and set(BASELINES) < set(scores)
    lacking = next(each for each in ("val", "test") if each != split)
    with problem("empty-split", place=f"split {lacking}"):
        evaluate_run(run, lacking, overrides=[OTHER_SET.format(file, file.parent)], name="others")


def test_a_model_is_scored_without_baselines_where_its_training_exams_are_not(
    other_set: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = other_set
    build_any = build.build_dataset

    def without_phantom(recipe: Recipe) -> ExamSource:
        if recipe.data.dataset.name == "phantom":
            raise UserError("no-such-file", "no such folder")
        return build_any(recipe)

    monkeypatch.setattr(build, "build_dataset", without_phantom)
    scores = evaluate_run(run, "test", overrides=[OTHER_SET.format(file, file.parent)], name="others")
    own = json.loads((run / "scores.json").read_text())["test"]
    assert list(scores) == ["model", LOW, HIGH, VARIETY, CONFIDENCE] and scores["model"] == own["model"]
    printed = capsys.readouterr().out
    assert "there are no baselines: no such folder" in printed and "word for word" not in printed
    with problem("no-such-file"):
        evaluate_run(run, "test")


def test_a_run_works_elsewhere_without_the_plugin_files_that_it_was_trained_with(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, imported = tmp_path / "source", tmp_path / "loss_was_imported"
    source.mkdir()
    (source / "my_loss.py").write_text(LOSS.format(marker=str(imported)))
    (source / "my_metric.py").write_text(METRIC)
    (source / "counting.py").write_text("def count(text):\n    return len(text)\n")
    plugins = f"plugins=[{source / 'my_loss.py'},{source / 'my_metric.py'}]"
    words = [plugins, "+losses.mine={weight: 0.1}", "+evaluate.metrics=mine", "train.epochs=1", f"run.root={tmp_path}"]
    launch(str(ROOT / "recipes" / "smoke.yaml"), *words, "run.name=a", cwd=work)
    assert imported.exists()
    imported.unlink()
    shutil.rmtree(source)
    run = tmp_path / "copied"
    shutil.move(tmp_path / "smoke" / "a", run)
    assert {path.name for path in (run / "model" / "plugins").iterdir()} == {
        "my_loss.py",
        "my_metric.py",
        "counting.py",
    }
    for recipe in (run / "recipe.yaml", run / "model" / "recipe.yaml"):
        assert str(tmp_path / "source") not in recipe.read_text()
    monkeypatch.chdir(work)  # its image cache
    before = json.loads((run / "scores.json").read_text())["test"]["model"]
    assert evaluate_run(run, "test")["model"] == before and before["words"] > 0
    image = tmp_path / "view.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)).save(image)
    assert predict(run, [image]) == predict(run / "model", [image])
    assert not imported.exists(), "neither needs the loss"
    (run / "model" / "plugins" / "added.py").touch()
    with problem("damaged-file", "added.py"):
        verify_model(run / "model")


def test_a_run_stores_the_words_of_all_test_exams(smoke_run: Path) -> None:
    reports, words = (
        [json.loads(line) for line in (smoke_run / folder / "test.jsonl").read_text("utf-8").splitlines()]
        for folder in ("predictions", "words")
    )
    assert [(row["id"], row["report"]) for row in words] == [(row["id"], row["prediction"]) for row in reports]
    for row in words:
        assert all(row["report"].startswith(word["text"], word["start"]) for word in row["words"])
        assert row["grid"] and all(word["heat"] and 0 < word["confidence"] <= 1 for word in row["words"])
        topic, probability = row["topic"]
        assert 0 <= topic < 4 and 0.25 <= probability <= 1


def test_evaluating_validation_calibrates_a_model_that_is_not(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Path
) -> None:
    monkeypatch.chdir(work)  # its image cache
    run = shutil.copytree(smoke_run, tmp_path / "run")
    before = read_calibration(run / "model")
    publish_model(run / "model", run / "model", {CALIBRATION: None})
    image = [np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)]
    assert not Predictor(run).report(image).calibrated and model_temperature(run / "model") is None
    scores = evaluate_run(run, "test")
    assert scores[CONFIDENCE]["temperature"] is None and "not calibrated" in (run / "report.html").read_text("utf-8")
    evaluate_run(run, "val", overrides=["evaluate.num_beams=1"], name="greedy")
    assert model_temperature(run / "model") is None, "scores of another name leave the model as it is"
    evaluate_run(run, "val")
    assert read_calibration(run / "model") == before
    report = Predictor(run).report(image)
    assert (
        report.calibrated and not Predictor(run, selection=ModelSelection(others=(smoke_run,))).report(image).calibrated
    )
