"""Code that comes with a saved model runs only if the user trusts it, and only if it is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import ROOT, problem
from PIL import Image
from typer.testing import CliRunner

import sonoscribe
from framework import cli
from framework.build import build_dataset, build_task, build_tokenizer, load_exams
from framework.checkpoint.export import ModelTexts, write_manifest, write_model
from framework.evaluation.evaluate import evaluate_run
from framework.evaluation.model_selection import ModelSelection
from framework.evaluation.predict import predict
from framework.recipe import load_recipe, portable
from framework.registry import trust as trust_of
from framework.run.init_from import find_source

IMPORTS = "from pathlib import Path\nfrom framework.registry import register\n"
TOKENIZER = """from plugins.tokenizer.words import Words
Path({marker!r}).touch()


@register("tokenizer", "mine")
class Mine(Words):
    '''Words.'''
"""
LOSS = """Path({marker!r}).touch()


@register("loss", "costly")
class Costly:
    '''Nothing.'''

    needs = ("logits",)
"""


@dataclass
class Model:
    run: Path
    source: Path  # of the tokenizer
    tokenizer: Path  # its copy in the model
    image: Path
    marker: Path  # there once the tokenizer was imported
    loss_marker: Path
    sha256: str


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model from another user with its own tokenizer and loss, which were not imported."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    few = ["data.dataset.exams=16", "data.dataset.val_exams=2", "data.dataset.test_exams=2", "distiller.topics=2"]
    words = [*few, "evaluate.max_length=8", f"data.cache_dir={tmp_path / 'cache'}"]
    smoke = ROOT / "recipes" / "smoke.yaml"
    recipe = load_recipe(smoke, words)
    tokenizer = build_tokenizer(recipe, [exam.report for exam in load_exams(build_dataset(recipe))["train"]], None)
    weights = build_task(recipe, tokenizer, None, None, trained=True).state_dict()
    markers = tmp_path / "tokenizer_was_imported", tmp_path / "loss_was_imported"
    files = tmp_path / "tok.py", tmp_path / "loss.py"
    for file, text, marker in zip(files, (TOKENIZER, LOSS), markers, strict=True):
        file.write_text(IMPORTS + text.format(marker=str(marker)))
    theirs = load_recipe(
        smoke,
        [
            *words,
            f"plugins=[{files[0]},{files[1]}]",
            "data.tokenizer={_delete_: true, name: mine}",
            "+losses.costly={weight: 1.0}",
        ],
    )
    run = tmp_path / "run"
    write_model(run / "model", {n: w.clone() for n, w in weights.items()}, ModelTexts(tokenizer, portable(theirs)))
    image = tmp_path / "view.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)).save(image)
    assert not any(marker.exists() for marker in markers)
    copy = run / "model" / "plugins" / "tok.py"
    return Model(run, files[0], copy, image, *markers, trust_of.sha256_of(files[0].read_bytes()))


USES: dict[str, Callable[[Model], Any]] = {
    "predict": lambda model: predict(model.run, [model.image]),
    "predict from model/": lambda model: predict(model.run / "model", [model.image]),
    "sonoscribe.load": lambda model: sonoscribe.load(model.run),
    "evaluate": lambda model: evaluate_run(model.run, "val"),
    "--with": lambda model: predict(model.run, [model.image], None, ModelSelection(others=(model.run,))),
    "init_from": lambda model: find_source(str(model.run)),
}


@pytest.mark.parametrize("use", USES)
def test_code_of_a_saved_model_is_listed_and_not_imported(model: Model, use: str) -> None:
    """A file beside a downloaded recipe.yaml was imported without a word."""
    with problem("untrusted-code", str(model.tokenizer)) as found:
        USES[use](model)
    assert {each.place for each in found} == {str(model.tokenizer), str(model.tokenizer.with_name("loss.py"))}
    assert model.sha256 in found[0].found and "--trust" in found[0].hint
    assert not model.marker.exists() and not model.loss_marker.exists()


def test_trust_is_remembered_by_hash_and_a_verb_imports_only_what_it_needs(model: Model) -> None:
    report = sonoscribe.load(model.run, trust=True).report([model.image])
    assert model.marker.exists() and not model.loss_marker.exists(), "predict needs no loss"
    stored = trust_of.trusted_file()
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600 and model.sha256 in json.loads(stored.read_text())
    trust_of._trusted_here.clear()
    assert predict(model.run, [model.image]) == report
    evaluate_run(model.run, "val")
    assert not model.loss_marker.exists(), "evaluate needs no loss"
    find_source(str(model.run))


def test_a_file_that_changed_after_it_was_trusted_is_refused(model: Model) -> None:
    trust_of.trust([model.tokenizer])
    model.tokenizer.write_text(model.tokenizer.read_text() + "# more\n")
    with problem("damaged-file", str(model.tokenizer)):
        sonoscribe.load(model.run)
    write_manifest(model.run / "model")
    with problem("untrusted-code", str(model.tokenizer)):
        sonoscribe.load(model.run)
    assert not model.marker.exists()


def test_a_cluster_trusts_by_a_variable(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONOSCRIBE_TRUST", f"{'0' * 64}, {model.sha256.upper()}")
    sonoscribe.load(model.run)
    assert model.marker.exists() and not trust_of.trusted_file().exists()


def test_compiled_code_beside_a_trusted_file_does_not_run(model: Model, tmp_path: Path) -> None:
    """A .pyc file can disable the comparison with its source."""
    other, evil = tmp_path / "other.py", tmp_path / "evil"
    other.write_text(f"from pathlib import Path\nPath({str(evil)!r}).touch()\n")
    compiled = py_compile.compile(str(other), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    target = Path(importlib.util.cache_from_source(str(model.tokenizer)))
    target.parent.mkdir(exist_ok=True)
    shutil.copy(str(compiled), target)
    sonoscribe.load(model.run, trust=True)
    assert model.marker.exists() and not evil.exists()


def test_predict_takes_trust_and_exits_with_2_without(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", str(model.run), str(model.image)])
    assert ended.value.code == 2 and "[untrusted-code]" in capsys.readouterr().err
    done = CliRunner().invoke(cli.app, ["predict", str(model.run), str(model.image), "--trust"])
    assert done.exit_code == 0, done.output
    assert model.marker.exists()


def test_files_that_the_user_names_need_no_trust_unless_the_recipe_is_a_saved_one(model: Model) -> None:
    mine = model.run.with_name("mine.yaml")
    mine.write_text("_base_: shipped:smoke.yaml\nplugins: [tok.py]\ndata: {tokenizer: {_delete_: true, name: mine}}\n")
    assert trust_of.unmarked(load_recipe(mine).plugin_files) == [model.source.resolve()]
    saved = load_recipe(model.run / "model" / "recipe.yaml")
    assert trust_of.unmarked(saved.plugin_files) == []


def test_a_damaged_list_of_trusted_files_names_itself_and_no_home_is_no_error(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = trust_of.trusted_file()
    stored.parent.mkdir(parents=True)
    stored.write_text("[")
    with problem("damaged-file", str(stored)):
        sonoscribe.load(model.run)
    monkeypatch.setenv("XDG_CONFIG_HOME", os.devnull)
    sonoscribe.load(model.run, trust=True)
    assert model.marker.exists()
