"""Images that are unlike the training images, and the nearest training exams."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import problem
from PIL import Image
from safetensors.numpy import load_file, save_file

import sonoscribe
from framework.build import build_dataset, run_recipe
from framework.checkpoint.export import FEATURES, MANIFEST, verify_model, write_manifest
from framework.cli import main
from framework.evaluation.evaluate import evaluate_run
from framework.evaluation.feature_distance import (
    NEAREST,
    NEAREST_EXAMS,
    TRAINING_EXAMS,
    FeatureStatistics,
    TrainingExams,
    ViewFeatures,
    layout,
    view_vectors,
)
from framework.evaluation.model_selection import ModelSelection
from framework.evaluation.predict import Predictor
from framework.evaluation.predict_exams import ListedExam, predict_exams
from framework.exam import Batch, Features

DRAW = np.random.default_rng(0)
NOISE = DRAW.integers(0, 255, (48, 64), dtype=np.uint8)


def exams(count: int) -> list[ViewFeatures]:
    """Features of exams with one to three views; the features of the encoder are strongly correlated."""
    views = [1 + number % 3 for number in range(count)]
    mixing = np.eye(8) + 10
    return [ViewFeatures(DRAW.normal(size=(each, 8)) @ mixing, DRAW.normal(size=(each, 2))) for each in views]


def one_view(encoder_D: np.ndarray, layout_P: tuple[float, float] = (0.0, 0.0)) -> ViewFeatures:
    return ViewFeatures(encoder_D[None], np.array([layout_P]))


@pytest.fixture
def run(smoke_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(smoke_run, tmp_path / "run")
    return tmp_path / "run"


def test_one_percent_of_validation_exams_are_unlike_the_training_images() -> None:
    validation = exams(2000)
    statistics = FeatureStatistics.fit(exams(2000), validation)
    assert np.mean([statistics.distances(views).max() > 1 for views in validation]) == pytest.approx(0.01, abs=5e-4)
    assert np.mean([statistics.distances(views).max() > 1 for views in exams(2000)]) == pytest.approx(0.01, abs=0.01)


def test_a_small_step_against_the_correlation_of_features_is_far() -> None:
    statistics = FeatureStatistics.fit(exams(500), exams(100))
    together, against = np.full(8, 20.0), np.array([20.0, *[0.0] * 7])
    assert statistics.distances(one_view(together))[0] < 1 < 2 < statistics.distances(one_view(against))[0]
    assert statistics.distances(one_view(np.zeros(8), (0.0, 9.0)))[0] > 1, "the layout alone"


def test_fewer_exams_than_features_have_statistics() -> None:
    statistics = FeatureStatistics.fit(exams(2), exams(1))
    assert np.isfinite(statistics.encoder.whitening_DD).all() and np.isfinite(statistics.distances(exams(1)[0])).all()


def test_cells_that_never_vary_do_not_outweigh_the_others() -> None:
    black = [ViewFeatures(each.encoder_VD, each.layout_VP * [1.0, 0.0]) for each in exams(200)]
    statistics = FeatureStatistics.fit(black[:150], black[150:])
    assert statistics.distances(one_view(np.zeros(8), (0.0, 0.05)))[0] < 1


def test_the_layout_is_mean_and_deviation_of_each_cell() -> None:
    image_VCHW = np.zeros((1, 2, 17, 17), np.uint8)
    image_VCHW[..., 16] = 255  # fills no cell
    image_VCHW[0, :, 0, 2:4] = 255, 255
    found = layout(image_VCHW).reshape(2, 8, 8)
    assert found.shape == (2, 8, 8) and found[0, 0, 1] == found[1, 0, 1] == 0.5
    assert np.count_nonzero(found) == 2


@pytest.mark.parametrize("gives", ["patches", "pooled"])
def test_every_view_has_a_vector_whatever_the_encoder_gives(gives: str) -> None:
    """The mean of each view's pixels is the only feature; the views of an exam are not mixed."""

    def encoder(image_BVCHW: torch.Tensor, view_mask_BV: torch.Tensor) -> Features:
        assert view_mask_BV.all() and image_BVCHW.shape[1] == 1
        patches_BND = image_BVCHW.flatten(2).transpose(1, 2)
        mask_BN = torch.ones(patches_BND.shape[:2], dtype=torch.bool)
        if gives == "patches":
            return Features(patches_BND, mask_BN, None)  # type: ignore[arg-type]
        return Features(None, None, patches_BND.mean(1))  # type: ignore[arg-type]

    values = torch.tensor([[1.0, 9.0, 0.0], [2.0, 3.0, 4.0]])
    image_BVCHW = values[..., None, None, None].expand(-1, -1, 1, 2, 2)
    batch = Batch(["a", "b"], image_BVCHW, torch.tensor([[True, True, False], [True] * 3]), torch.zeros(2, 1))
    assert [found.ravel().tolist() for found in view_vectors(encoder, batch)] == [[1.0, 9.0], [2.0, 3.0, 4.0]]


def test_a_run_ends_with_features_and_its_model_alone_has_no_training_exam(smoke_run: Path) -> None:
    source = build_dataset(run_recipe(smoke_run)).splits()
    reports = {exam.id: exam.report for exam in source["train"]}
    predictor = Predictor(smoke_run)
    assert predictor.training_exams is not None and len(predictor.training_exams.exams) == len(reports) == 64
    report = predictor.report([view.load() for view in source["train"][3].views])
    assert report.nearest[0].id == source["train"][3].id
    assert report.nearest[0].distance == pytest.approx(0, abs=0.05)  # vectors are stored with 11 bits
    assert [exam.report for exam in report.nearest] == [reports[exam.id] for exam in report.nearest]
    assert len(report.nearest) == NEAREST
    distances = [exam.distance for exam in report.nearest]
    assert distances == sorted(distances)
    alone = sonoscribe.load(smoke_run / "model").report([NOISE])
    assert alone.nearest == () and len(alone.distances) == 1
    texts = b"".join(path.read_bytes() for path in (smoke_run / "model").rglob("*") if path.is_file())
    assert not [name for name, text in reports.items() if text.encode() in texts or f'"{name}"'.encode() in texts]


def another_kind(kind: str) -> list[np.ndarray]:
    """Images that are no ultrasound."""
    if kind == "noise":
        return [DRAW.integers(0, 255, (160, 160), dtype=np.uint8) for _ in range(10)]
    rows, columns = np.mgrid[0:1:160j, 0:1:160j]
    blobs = [np.exp(-((rows - DRAW.random()) ** 2 + (columns - DRAW.random()) ** 2) / 0.05) for _ in range(40)]
    return [  # smooth surfaces under a light from below, with an edge, as in a photograph
        (30 * np.sum(blobs[4 * number : 4 * number + 4], 0) + 80 * rows + 60 * (columns > 0.6)).astype(np.uint8)
        for number in range(10)
    ]


@pytest.mark.parametrize("kind", ["noise", "photograph"])
def test_images_of_another_kind_have_a_warning(smoke_run: Path, kind: str) -> None:
    model = sonoscribe.load(smoke_run)
    model.num_beams = 1
    reports = model.reports([[image] for image in another_kind(kind)])
    assert all(report.distances[0] > 1 for report in reports), [report.distances for report in reports]
    own = [[view.load() for view in exam.views] for exam in build_dataset(run_recipe(smoke_run)).splits()["test"]]
    assert sum(max(report.distances) > 1 for report in model.reports(own)) <= 2  # of 16, by a threshold of 16


def test_a_view_of_another_kind_has_a_warning_everywhere(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = build_dataset(run_recipe(smoke_run)).splits()["test"][0].views[0].load()
    model = sonoscribe.load(smoke_run)
    assert model.report([own]).warnings == () and model.report([own]).distances[0] <= 1
    report = model.report([own, NOISE])
    (warning,) = report.warnings
    assert warning.startswith("view 2 ") and report.distances[1] > 1 >= report.distances[0]
    monkeypatch.setattr("framework.evaluation.predict_exams.Predictor", lambda *_: model)
    monkeypatch.setattr(model, "load", lambda files: np.stack([Predictor.load(model, [NOISE])[0]] * len(files)))
    (tmp_path / "1.png").touch()
    predict_exams(smoke_run, [ListedExam("1", tmp_path, ("1.png",))], tmp_path / "out.jsonl")
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert row["warnings"] and row["warnings"][0].startswith("view 1 ")


def test_an_ensemble_has_the_distances_of_its_own_model_and_averaged_weights_have_none(
    smoke_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Predictor(smoke_run)
    ensemble = Predictor(smoke_run, None, ModelSelection(others=(smoke_run,)))
    expected, report = own.report([NOISE]), ensemble.report([NOISE])
    assert report.distances == pytest.approx(expected.distances) and report.warnings == expected.warnings
    assert report.nearest[0].id == expected.nearest[0].id
    monkeypatch.setattr("framework.evaluation.predict.load_models", lambda *_: (own.task, []))
    averaged = Predictor(smoke_run, None, ModelSelection(average=2)).report([NOISE])
    assert averaged.distances == () and averaged.nearest == () and "averaged weights" in averaged.warnings[0]


def test_predict_prints_warnings_beside_the_report(
    smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(NOISE).save(tmp_path / "view.png")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(smoke_run), str(tmp_path / "view.png")])
    printed = capsys.readouterr()
    assert not ended.value.code and "view 1 is unlike" in printed.err and "unlike" not in printed.out


def test_a_model_without_features_says_so_and_evaluate_adds_them(
    run: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Predictor(run).report([NOISE])
    (run / TRAINING_EXAMS).unlink()
    (run / "model" / FEATURES).unlink()
    write_manifest(run / "model")
    old = Predictor(run)
    report = old.report([NOISE])
    assert report == before and report.distances == () and report.nearest == ()
    (warning,) = report.warnings
    assert "evaluate RUN" in warning
    monkeypatch.chdir(work)  # its image cache
    evaluate_run(run, "val")
    verify_model(run / "model")
    again = Predictor(run).report([NOISE])
    assert again.distances == pytest.approx(before.distances, rel=1e-4) and again.nearest[0].id == before.nearest[0].id


def test_training_exams_of_other_weights_are_not_used(run: Path) -> None:
    manifest = json.loads((run / "model" / MANIFEST).read_text())
    manifest["model.safetensors"][1] = "0" * 64
    (run / "model" / MANIFEST).write_text(json.dumps(manifest))
    statistics = SimpleNamespace(encoder=SimpleNamespace(mean_D=np.zeros(64)))
    assert TrainingExams.load(run, statistics) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["shape", "values", "name", "text"])
def test_damaged_features_are_refused(run: Path, change: str) -> None:
    path = run / "model" / FEATURES
    arrays = load_file(path)
    if change == "shape":
        arrays["encoder.mean_D"] = arrays["encoder.mean_D"][1:]
    elif change == "values":
        arrays["layout.whitening_DD"][0, 0] = np.nan
    elif change == "name":
        arrays["other"] = arrays.pop("layout.mean_D")
    save_file(arrays, path)
    if change == "text":
        path.write_text("no tensors")
    with problem("damaged-file"):
        Predictor(run)
    write_manifest(run / "model")  # by someone who made the file
    with problem("damaged-file" if change in ("values", "text") else "does-not-fit", str(path)):
        Predictor(run)


def test_damaged_training_exams_are_refused(run: Path) -> None:
    path, statistics = run / TRAINING_EXAMS, FeatureStatistics.load(run / "model", 64, 32)
    assert statistics is not None
    found = TrainingExams.load(run, statistics)
    assert found is not None
    weights = json.loads((run / "model" / MANIFEST).read_text())["model.safetensors"][1]
    path.write_bytes(TrainingExams(found.vectors_ND[:-1], found.exams).to_bytes(weights))
    with problem("damaged-file", str(path)):
        TrainingExams.load(run, statistics)
    path.write_bytes(TrainingExams(found.vectors_ND[:, 1:], found.exams).to_bytes(weights))
    with problem("does-not-fit", str(path)):
        TrainingExams.load(run, statistics)


def test_at_most_so_many_training_exams_are_kept(run: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.evaluation.feature_distance.MOST_EXAMS", 5)
    monkeypatch.chdir(work)
    (run / TRAINING_EXAMS).unlink()
    evaluate_run(run, "val")
    kept = Predictor(run).training_exams
    assert kept is not None and len(kept.exams) == 5


def test_the_page_of_a_run_shows_the_training_exams_nearest_to_each_test_exam(run: Path, work: Path) -> None:
    kept = json.loads((run / NEAREST_EXAMS).read_text())
    with contextlib.chdir(work):
        splits = build_dataset(run_recipe(run)).splits()
    training = {exam.id: exam.report for exam in splits["train"]}
    assert list(kept) == [exam.id for exam in splits["test"]]
    assert all(len(near) == NEAREST and set(near) <= set(training) for near in kept.values())
    exam = splits["test"][0]
    predicted = Predictor(run).report([view.load() for view in exam.views])
    assert [near.id for near in predicted.nearest] == kept[exam.id]
    page = (run / "report.html").read_text()
    assert page.count("nearest training exams") == len(kept) and training[kept[exam.id][0]] in page
