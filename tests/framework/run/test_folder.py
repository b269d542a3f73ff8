"""The folder that a run writes to, and the checkpoint that it resumes from, however the run before ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from harness import ROOT, problem
from safetensors.torch import load_file

from framework import trainer
from framework.build import build_components
from framework.checkpoint.export import FEATURES, ModelTexts, publish_model, verify_model
from framework.checkpoint.format import (
    CheckpointError,
    RetentionPolicy,
    Snapshot,
    TrainState,
    checkpoints_of,
    verify_checkpoint,
    write_checkpoint,
)
from framework.data.leakage import PATIENTS_FILE, patients_seen
from framework.distributed.launch import launch_id, start_accelerator
from framework.recipe import PortableRecipe, Recipe, load_recipe, portable, recipe_hash, result_tree
from framework.run import folder as run_folder
from framework.run.folder import open_run, remove_refused_run
from framework.run.tracking import keep_lines
from framework.runtime.errors import Stopped
from framework.runtime.signals import StopSignals
from framework.topics.distill import topic_changes

SMOKE = ROOT / "recipes" / "smoke.yaml"


class Tokenizer:
    def save(self, path: Path) -> None:
        path.write_text("{}")


@pytest.fixture(autouse=True)
def locks_are_release_locks() -> Iterator[None]:
    """A process that trains has one run; this one opens many."""
    yield
    release_locks()


def release_locks() -> None:
    for file in run_folder._locks:
        os.close(file)
    run_folder._locks.clear()


def recipe_of(root: Path, *words: str) -> Recipe:
    return load_recipe(SMOKE, [f"run.root={root}", *words])


FEW = ("data.dataset.exams=8", "data.dataset.val_exams=1", "data.dataset.test_exams=1", "distiller.topics=2")


def write(folder: Path, recipe: Recipe, step: int, best_step: int | None = None) -> Path:
    weights = {"encoder.weight": torch.full((3,), float(step))}
    best = step if best_step is None else best_step
    train_state = TrainState(
        step=step, best_step=best, best_score=1.0, val_scores={f"step-{best}": 1.0}, recipe=result_tree(recipe)
    )
    state = {f"weights/{name}": value.clone() for name, value in weights.items()}
    snapshot = Snapshot(train_state, state, weights, ModelTexts(Tokenizer(), PortableRecipe("{}\n")))
    return write_checkpoint(folder / "checkpoints", snapshot, RetentionPolicy(3, 1, True))


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def attempt(folder: Path, launch: str) -> Path:
    """A run's folder as an attempt of a launch leaves it."""
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"launch": {"id": launch}}))
    return folder


def test_a_new_run_goes_to_a_folder_of_its_time_and_recipe(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    opened = open_run(recipe)
    assert opened.folder.parent == tmp_path / "smoke" and opened.folder.name.endswith(f"-{recipe_hash(recipe)[:8]}")
    assert opened.folder.is_dir() and opened.checkpoint is None and opened.train_state is None


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    remove_refused_run(open_run(recipe_of(tmp_path / "runs", "run.name=mine")))
    assert list(tmp_path.iterdir()) == []
    other = tmp_path / "runs" / "smoke" / "other"
    other.mkdir(parents=True)
    remove_refused_run(open_run(recipe_of(tmp_path / "runs", "run.name=mine")))
    remove_refused_run(open_run(recipe_of(tmp_path / "runs", "run.name=other")))
    assert other.is_dir() and list(other.parent.iterdir()) == [other]


def test_a_run_that_is_refused_when_its_optimizer_is_built_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopSignals, "listen", lambda _: None)  # signals stay the test runner's
    keys = [*FEW, f"data.cache_dir={tmp_path / 'cache'}", "optimizer.group_lrs={decoder.embedd: 0.1}"]
    with problem("unknown-name", "optimizer.group_lrs"):
        trainer.train(recipe_of(tmp_path / "runs", *keys))
    assert not (tmp_path / "runs").exists()


def test_a_named_run_is_not_overwritten(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine")
    write(tmp_path / "smoke" / "mine", recipe, 3)
    with problem("file-exists", "mine"):
        open_run(recipe)


def test_auto_resumes_the_newest_unfinished_run_of_this_recipe(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "resume=auto")
    digest, home = recipe_hash(recipe)[:8], tmp_path / "smoke"
    for day in ("01", "02", "03"):
        write(home / f"202601{day}-000000-{digest}", recipe, int(day))
    (home / f"20260103-000000-{digest}" / "scores.json").write_text('{"val": {}, "test": {}}')
    (home / f"20260102-000000-{digest}" / "scores.json").write_text('{"val": {}}')  # died between the two
    write(home / "20260104-000000-00000000", recipe, 9)  # of another recipe
    opened = open_run(recipe)
    assert opened.folder == home / f"20260102-000000-{digest}"
    assert opened.checkpoint == opened.folder / "checkpoints" / "step-2"
    assert opened.train_state is not None and opened.train_state.step == 2


def test_auto_starts_a_new_run_without_one_to_resume(tmp_path: Path) -> None:
    assert open_run(recipe_of(tmp_path, "resume=auto")).checkpoint is None
    assert open_run(recipe_of(tmp_path, "resume=auto", "run.name=mine")).folder == tmp_path / "smoke" / "mine"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with problem("no-checkpoint", "resume", CheckpointError):
        open_run(recipe_of(tmp_path, f"resume={tmp_path / 'nowhere'}"))


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine", "resume=auto")
    run = tmp_path / "smoke" / "mine"
    for step in (1, 2, 3):
        write(run, recipe, step)
    damage(run / "checkpoints" / "step-3" / "training.safetensors")
    (run / "checkpoints" / "step-2" / "trainer.json").unlink()
    opened = open_run(recipe)
    assert opened.checkpoint == run / "checkpoints" / "step-1"
    printed = capsys.readouterr().out
    assert "step-3/training.safetensors" in printed and "step-2/trainer.json" in printed
    assert printed.count("[damaged-checkpoint]") == 2


def test_a_damaged_checkpoint_that_was_named_is_refused_and_the_others_are_listed(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine")
    run = tmp_path / "smoke" / "mine"
    one, two = write(run, recipe, 1), write(run, recipe, 2)
    damage(two / "training.safetensors")
    with problem("damaged-checkpoint", str(two), CheckpointError) as found:
        open_run(recipe_of(tmp_path, f"resume={two}"))
    assert f"resume={one}" in found[0].hint
    os.close(run_folder._locks.pop())
    assert open_run(recipe_of(tmp_path, f"resume={one}")).checkpoint == one


def test_a_run_with_only_damaged_checkpoints_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine", "resume=auto")
    damage(write(tmp_path / "smoke" / "mine", recipe, 1) / "trainer.json")
    with problem("damaged-checkpoint", "step-1/trainer.json", CheckpointError):
        open_run(recipe)


def test_another_recipe_is_refused_with_the_difference_unless_ignored(tmp_path: Path) -> None:
    write(tmp_path / "smoke" / "mine", recipe_of(tmp_path), 1)
    other = ["run.name=mine", "resume=auto", "train.epochs=9", "optimizer.lr=1e-3"]
    with problem("recipe-differs", "step-1", CheckpointError) as found:
        open_run(recipe_of(tmp_path, *other))
    assert "train.epochs was 3, now 9" in found[0].found
    assert "'resume_ignore=[optimizer.lr,train.epochs]'" in found[0].hint
    os.close(run_folder._locks.pop())
    assert open_run(recipe_of(tmp_path, *other, "resume_ignore=[optimizer,train.epochs]")).train_state


def test_remains_of_an_interrupted_save_are_removed(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine", "resume=auto")
    run = tmp_path / "smoke" / "mine"
    write(run, recipe, 1)
    for left in (".step-2.part", ".step-1.before"):
        (run / "checkpoints" / left / "model").mkdir(parents=True)
    (run / "checkpoints" / ".latest.1a2b3c4d.part").write_text("step-")
    (run / ".model.part").mkdir()
    open_run(recipe)
    assert {path.name for path in run.rglob(".*")} == {".lock"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-1", "latest", "best"}


def test_a_save_interrupted_between_its_two_renames_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine", "resume=auto")
    only = write(tmp_path / "smoke" / "mine", recipe, 1)
    (only.parent / ".step-1.part").mkdir()
    only.rename(only.with_name(".step-1.before"))  # step-1 is written again after its validation
    assert open_run(recipe).checkpoint == only


@pytest.mark.parametrize("ended", ["before the model was published", "while the model was put in place"])
def test_a_run_killed_between_its_best_checkpoint_and_its_model_gets_that_model(tmp_path: Path, ended: str) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine", "resume=auto")
    run = tmp_path / "smoke" / "mine"
    write(run, recipe, 1)
    of_before = tmp_path / "of_before"
    shutil.copytree(run / "model", of_before)
    write(run, recipe, 2)
    shutil.rmtree(run / "model")
    of_before.rename(run / ("model" if ended == "before the model was published" else ".model.before"))
    open_run(recipe)
    assert load_file(run / "model" / "model.safetensors")["encoder.weight"].tolist() == [2.0, 2.0, 2.0]


def test_a_damaged_best_model_is_not_published_and_no_longer_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine", "resume=auto")
    run = tmp_path / "smoke" / "mine"
    best, newest = write(run, recipe, 1), write(run, recipe, 2, best_step=1)
    damage(best / "model" / "model.safetensors")  # a hard link: of the published model, too
    opened = open_run(recipe)
    assert opened.checkpoint == newest and opened.train_state is not None
    assert not (run / "model").exists() and len(list(run.glob("aside-model-*"))) == 1, "kept under another name"
    assert not best.exists() and len(list(best.parent.glob("aside-step-1-*"))) == 1
    state = opened.train_state
    assert (state.best_score, state.best_step, state.val_scores) == (None, None, {})
    printed = capsys.readouterr().out
    assert f"warning: the best model so far cannot be used; the best one from here on is kept: {best}" in printed


@pytest.mark.parametrize("name", ["training.safetensors", "trainer.json", "model/recipe.yaml", "model/tokenizer.json"])
def test_a_best_checkpoint_with_a_damaged_file_that_its_model_does_not_need_stays_the_best(
    tmp_path: Path, name: str
) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine", "resume=auto")
    run = tmp_path / "smoke" / "mine"
    best, newest = write(run, recipe, 1), write(run, recipe, 2, best_step=1)
    damage(best / name)
    opened = open_run(recipe)
    assert opened.checkpoint == newest and opened.train_state is not None
    assert (opened.train_state.best_step, opened.train_state.val_scores) == (1, {"step-1": 1.0})
    verify_model(run / "model")
    verify_model(best / "model")  # made again from the published one
    assert load_file(run / "model" / "model.safetensors")["encoder.weight"].tolist() == [1.0, 1.0, 1.0]


def test_a_best_checkpoint_is_made_whole_from_a_published_model_with_features(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine", "resume=auto")
    run = tmp_path / "smoke" / "mine"
    best, _ = write(run, recipe, 1), write(run, recipe, 2, best_step=1)
    publish_model(run / "model", run / "model", {FEATURES: b"features"})
    verify_model(run / "model")
    (best / "model" / "tokenizer.json").unlink()
    open_run(recipe)
    assert verify_checkpoint(best) is None


def test_an_edit_of_the_published_recipe_leaves_the_checkpoint_as_it_is(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine", "resume=auto")
    run = tmp_path / "smoke" / "mine"
    best = write(run, recipe, 1)
    with (run / "model" / "recipe.yaml").open("a") as file:
        file.write("# note\n")
    assert verify_checkpoint(best) is None
    with problem("damaged-file", "recipe.yaml"):
        verify_model(run / "model")
    open_run(recipe)
    verify_model(run / "model")  # published again


def test_a_run_that_another_process_writes_to_is_refused_and_names_it(tmp_path: Path) -> None:
    held = tmp_path / "smoke" / "mine"
    held.mkdir(parents=True)
    code = (
        "import sys; from pathlib import Path; from framework.run.folder import _lock; _lock(Path(sys.argv[1])); "
        "print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(held)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with problem("in-use", str(held)) as found:
            open_run(recipe_of(tmp_path, "run.name=mine"))
        assert f"pid {other.pid} on" in found[0].found
    finally:
        other.kill()
        other.wait()
    open_run(recipe_of(tmp_path, "run.name=mine"))  # a killed process holds nothing


def test_a_restarted_attempt_resumes_the_run_of_its_own_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, recipe = tmp_path / "smoke", recipe_of(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    attempt(home / "20260101-000000-aa", launch_id())
    write(home / "20260101-000000-aa", recipe, 4)
    attempt(home / "20260102-000000-aa", "of somebody else")
    assert open_run(recipe).folder not in (home / "20260101-000000-aa", home / "20260102-000000-aa")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    opened = open_run(recipe)  # for any value of resume
    assert opened.folder == home / "20260101-000000-aa"
    assert opened.train_state is not None and opened.train_state.step == 4


def test_a_restarted_attempt_without_a_folder_starts_a_new_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    attempt(tmp_path / "smoke" / "20260102-000000-aa", "of somebody else")
    opened = open_run(recipe_of(tmp_path))
    assert opened.checkpoint is None and opened.folder.name != "20260102-000000-aa"


def test_a_file_stop_prevents_a_restart_by_a_launcher_but_not_by_a_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = attempt(tmp_path / "smoke" / "mine", "mine")
    (run / "STOP").touch()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    # word for word
    with pytest.raises(Stopped, match="STOP exists"):
        open_run(recipe_of(tmp_path, "run.name=mine"))
    os.close(run_folder._locks.pop())
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    open_run(recipe_of(tmp_path, "run.name=mine", "resume=auto"))
    assert not (run / "STOP").exists()


def test_a_launch_without_an_id_is_identified_by_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # what accelerate launch gives
    one = launch_id()
    assert one == launch_id() and str(psutil.Process().ppid()) in one
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    assert launch_id().startswith("mine@") and str(psutil.Process().ppid()) in launch_id()


def test_checkpoints_newer_than_the_named_one_are_renamed_and_not_counted(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    run = tmp_path / "smoke" / "mine"
    one, *_ = [write(run, recipe, step, best_step=1) for step in (1, 2, 3)]
    open_run(recipe_of(tmp_path, f"resume={one}"))
    names = sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir())
    assert [name.rsplit("-", 2)[0] for name in names[:2]] == ["aside-step-2", "aside-step-3"] and names[2:] == [
        "step-1"
    ]
    snapshot = Snapshot(
        TrainState(step=2, recipe=result_tree(recipe)), {}, {}, ModelTexts(Tokenizer(), PortableRecipe("{}\n"))
    )
    write_checkpoint(run / "checkpoints", snapshot, RetentionPolicy(1, 0, True))
    assert checkpoints_of(run / "checkpoints") == [run / "checkpoints" / "step-2"]


def test_a_copy_of_a_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "run.name=mine", "resume=auto")
    only = write(tmp_path / "smoke" / "mine", recipe, 1)
    shutil.copytree(only, only.with_name("step-1.bak"))
    assert open_run(recipe).checkpoint == only


def test_a_named_checkpoint_with_another_name_than_step_n_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "smoke" / "mine", recipe_of(tmp_path), 1)
    for name in ("aside-step-1-20260101-120000", "step-1.bak"):
        shutil.copytree(one, one.with_name(name))
        with problem("no-checkpoint", "resume"):
            open_run(recipe_of(tmp_path, f"resume={one.with_name(name)}"))
    assert (one / "manifest.json").is_file()


def test_a_resumed_run_has_the_same_patients_and_topics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise Stopped("started")

    monkeypatch.setattr(StopSignals, "listen", lambda _: None)  # signals stay the test runner's
    monkeypatch.setattr(trainer, "Trainer", start)
    keys = [*FEW, f"data.cache_dir={tmp_path / 'cache'}", "run.name=mine", "resume=auto"]
    recipe, folder = recipe_of(tmp_path / "runs", *keys), tmp_path / "runs" / "smoke" / "mine"
    exams = build_components(recipe, start_accelerator(recipe), run=folder).exams
    known = json.loads((folder / "topics.json").read_text())

    def checkpoint(train: str) -> None:
        notes = {PATIENTS_FILE: patients_seen(recipe, {"train": exams[train], "val": exams["val"]}, None)}
        train_state = TrainState(
            step=7, best_step=7, best_score=1.0, val_scores={"step-7": 1.0}, recipe=result_tree(recipe)
        )
        texts = ModelTexts(Tokenizer(), portable(recipe), notes)
        write_checkpoint(folder / "checkpoints", Snapshot(train_state, {}, {}, texts), RetentionPolicy(3, 1, True))

    def resume(*more: str) -> None:  # in the same process, whose lock must be released each time
        trainer.train(recipe_of(tmp_path / "runs", *keys, *more))

    checkpoint(train="test")
    with problem("split-leak", "resume"):
        resume()
    checkpoint(train="train")
    with pytest.raises(Stopped, match="started"):
        resume()
    others = {**known, "labels": {**known["labels"], "train": [1 - topic for topic in known["labels"]["train"]]}}
    (folder / "topics.json").write_text(json.dumps(others))
    with problem("topics-differ", "topics.json", CheckpointError):
        resume()
    assert json.loads((folder / "topics.json").read_text()) == others, "what it was trained on stays"
    others["labels"]["train"].pop()
    (folder / "topics.json").write_text(json.dumps(others))
    with problem("topics-differ", "topics.json", CheckpointError):
        resume()
    with pytest.raises(Stopped, match="started"):
        resume("resume_ignore=[distiller]")
    assert json.loads((folder / "topics.json").read_text()) == known


def test_auto_reports_why_it_starts_a_new_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, home = recipe_of(tmp_path, "resume=auto"), tmp_path / "smoke"
    old = home / f"20260101-000000-{recipe_hash(recipe)[:8]}"
    write(old, recipe, 1)
    changed = recipe_of(tmp_path, "resume=auto", "train.epochs=9")
    assert open_run(changed).folder != old
    out = capsys.readouterr().out
    assert str(old) in out and "train.epochs was 3, now 9" in out and "resume_ignore=[train.epochs]" in out
    (old / "scores.json").write_text('{"test": {}}')
    assert open_run(recipe).folder != old
    assert f"{old} has this recipe and is finished" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00", "3"])
@pytest.mark.parametrize("name", ["scores.json", "environment.json", "topics.json", "metrics.jsonl"])
def test_damaged_state_of_a_run_names_its_file(tmp_path: Path, name: str, content: str) -> None:
    if (name, content) == ("metrics.jsonl", ""):
        return  # no records
    recipe = recipe_of(tmp_path, "resume=auto")
    run = tmp_path / "smoke" / f"20260101-000000-{recipe_hash(recipe)[:8]}"
    run.mkdir(parents=True)
    (run / name).write_text(f"{content}\n" if name == "metrics.jsonl" else content)
    topics: Any = SimpleNamespace(labels={"train": np.zeros(2, int)})
    with problem("damaged-file", f"{run / name}"):
        if name == "scores.json":
            open_run(recipe)
        elif name == "environment.json":
            run_folder._launch_of(run / name)
        elif name == "topics.json":
            topic_changes(run / name, topics)
        else:
            keep_lines(run / name, lambda row: row["step"] < 3)
