"""The Python interface: loads a model once, writes reports, and trains."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, problem
from html_page import Page, check_offline
from PIL import Image

import sonoscribe
from framework.evaluation.predict import predict
from framework.recipe import Recipe
from framework.runtime.errors import Stopped
from framework.runtime.signals import StopSignals


def test_a_loaded_model_gives_the_report_of_predict(smoke_run: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)
    image = tmp_path / "view.png"
    Image.fromarray(pixels).save(image)
    model = sonoscribe.load(smoke_run)
    expected = predict(smoke_run, [image])
    assert model.report([str(image)]) == model.report([pixels]) == expected
    assert sonoscribe.load(smoke_run / "model").report([image]) == expected


def test_many_exams_give_the_reports_of_each_alone(smoke_run: Path) -> None:
    model = sonoscribe.load(smoke_run)
    draw = np.random.default_rng(0)
    exams = [list(draw.integers(0, 255, (views, 48, 64), dtype=np.uint8)) for views in (1, 2, 2)]
    model.recipe.evaluate.__dict__["batch_size"] = 2  # two batches
    reports = model.reports(exams)
    assert reports == [model.report(exam) for exam in exams]
    assert [len(report.views) for report in reports] == [1, 2, 2]
    assert model.reports([]) == []


def test_each_word_has_its_confidence_and_where_the_model_looked(smoke_run: Path) -> None:
    exam = list(np.random.default_rng(0).integers(0, 255, (2, 48, 64), dtype=np.uint8))
    report = sonoscribe.load(smoke_run).report(exam)
    assert report.words and f"{report}" == report.text and len({report, report.text}) == 1
    for word in report.words:
        assert report.text[word.start :].startswith(word.text) and 0 < word.confidence <= 1
        assert word.attention is not None and word.attention.shape == (2, *word.attention.shape[1:])
        assert word.attention.sum() == pytest.approx(1, abs=1e-5)


def test_a_report_has_its_findings_with_their_confidence_and_the_topic(smoke_run: Path) -> None:
    exam = list(np.random.default_rng(0).integers(0, 255, (2, 48, 64), dtype=np.uint8))
    report = sonoscribe.load(smoke_run).report(exam)
    assert report.calibrated and report.findings and 0 < report.confidence < 1
    for finding in report.findings:
        assert finding.confidence is not None and 0 < finding.confidence <= 1
        assert finding.start is None or report.text[finding.start :].startswith(finding.words)
    assert report.unsure(0) == () and report.unsure(1.1) == report.findings
    assert report.predicted_topic is not None and report.predicted_topic in report._repr_html_()


def test_a_report_has_the_other_reports_of_its_beam(smoke_run: Path) -> None:
    model = sonoscribe.load(smoke_run)
    model.num_beams = 4
    report = model.report([np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)])
    texts = [report.text, *(other.text for other in report.alternatives)]
    assert len(set(texts)) == len(texts) > 1
    assert report.logprob < 0 and all(other.logprob < 0 for other in report.alternatives)
    model.num_beams = 1
    assert model.report([np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)]).alternatives == ()


def test_a_report_that_was_cut_says_so(smoke_run: Path) -> None:
    model = sonoscribe.load(smoke_run)
    model.recipe.evaluate.__dict__["max_length"] = 3
    report = model.report([np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)])
    assert "evaluate.max_length" in report.warnings[-1]


def test_a_report_shows_itself_in_a_notebook_as_an_offline_card(smoke_run: Path) -> None:
    report = sonoscribe.load(smoke_run).report([np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)])
    (frame,) = Page(report._repr_html_()).all("iframe")
    card = Page(frame["srcdoc"] or "")
    check_offline(card)
    words = card.all("span", "word")
    assert len(words) == len(report.words) and all(word["data-heat"] for word in words)
    assert [word["tabindex"] for word in words] == ["0", *["-1"] * (len(words) - 1)]
    assert len(card.all("img")) == 1


def test_unusable_images_are_refused(smoke_run: Path, tmp_path: Path) -> None:
    model = sonoscribe.load(smoke_run)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for images in ([tmp_path / "broken.png"], [np.zeros((8, 8))], [np.zeros((8, 8, 4), np.uint8)]):
        with problem("broken-image"):
            model.report(images)
    colour = np.tile(np.array([9, 0, 200], np.uint8), (8, 8, 1))
    for blank in (np.zeros((64, 64), np.uint8), np.ones((1, 1), np.uint8), colour):
        with problem("broken-image", "image"):
            model.report([blank])
    for images in ([], "view.png", np.zeros((8, 8), np.uint8)):
        with problem("wrong-type"):
            model.report(images)  # type: ignore[arg-type]
    good = [np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)]
    with problem("broken-image", "exams[1]"):
        model.reports([good, [tmp_path / "broken.png"]])


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with problem("no-model", place=str(tmp_path)):
        sonoscribe.load(tmp_path)


def test_training_refuses_mistakes_in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    with problem("unknown-key", "train.epoch"):
        sonoscribe.train("smoke", ["train.epoch=3"])
    with problem("wrong-type", "overrides"):
        sonoscribe.train("smoke", "train.epochs=3")
    monkeypatch.setattr("framework.trainer.train", lambda recipe: Path(recipe.run.root))
    assert sonoscribe.train("smoke", ["run.root=elsewhere"]) == Path("elsewhere")


def test_training_needs_the_main_thread() -> None:
    with ThreadPoolExecutor(1) as threads, problem("unsupported"):
        threads.submit(sonoscribe.train, "smoke").result()


def test_training_leaves_the_signal_handlers_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)

    def stopped(recipe: Recipe) -> Path:
        StopSignals().listen()
        raise Stopped("stopped")

    monkeypatch.setattr("framework.trainer.train", stopped)
    with pytest.raises(Stopped):
        sonoscribe.train("smoke")
    assert signal.getsignal(signal.SIGINT) is before and signal.set_wakeup_fd(-1) == -1


def script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a folder, whose packages come first on the path."""
    (folder / "script.py").write_text(text)
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, str(folder / "script.py")]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_import_is_light_and_registers_plugins(tmp_path: Path) -> None:
    done = script(
        tmp_path,
        "import sys, sonoscribe\n"
        "sonoscribe.register('metric', 'mine')(type('Mine', (), {}))\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("shadow", "text"),
    [
        ("framework", "import sonoscribe"),
        ("plugins", "import sonoscribe; from framework.registry import find, load; load(find('schedule', 'cosine'))"),
    ],
)
def test_a_package_of_the_user_that_shadows_ours_is_named(tmp_path: Path, shadow: str, text: str) -> None:
    (tmp_path / shadow).mkdir()
    (tmp_path / shadow / "__init__.py").write_text("")
    done = script(tmp_path, text)
    assert done.returncode != 0 and "[shadowed-package]" in done.stderr
    assert str(Path(shadow) / "__init__.py") in done.stderr
