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
