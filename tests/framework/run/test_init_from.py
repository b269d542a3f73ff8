"""A run begins with another one's encoder and decoder, and with nothing that does not fit."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import ROOT, launch, problem, records
from safetensors.torch import load_file, save_file
from torch import Tensor

from framework.build import RunComponents, build_components
from framework.checkpoint.export import ModelTexts, write_manifest
from framework.checkpoint.format import RetentionPolicy, Snapshot, TrainState, write_checkpoint
from framework.data.leakage import PATIENTS_FILE, patients_seen
from framework.data.loading import collate
from framework.distributed.launch import start_accelerator
from framework.exam import Batch
from framework.recipe import Choice, Recipe, load_recipe, portable
from framework.run.init_from import find_source, load_initial_weights
from framework.runtime.errors import Problem, UserError

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
FEW = ["data.dataset.exams=8", "data.dataset.val_exams=1", "data.dataset.test_exams=1", "distiller.topics=2"]
RESNET = "model.encoder={_delete_: true, name: resnet, depth: 10, width: 8}"  # with running statistics


@dataclass
class Made:
    recipe: Recipe
    components: RunComponents
    batch: Batch

    def begin(self, folder: Path) -> dict[str, Any]:
        return load_initial_weights(
            find_source(str(folder)),
            self.recipe,
            self.components.task,
            self.components.tokenizer,
            self.components.exams,
        )

    def logits(self) -> Tensor:
        task = self.components.task.eval()
        with torch.no_grad():
            return task.decoder(task.features(self.batch), self.batch.report_BT[:, :-1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    folder = tmp_path_factory.mktemp("made")

    def make(*keys: str, encoder: Sequence[str] = (RESNET,)) -> Made:
        recipe = load_recipe(SMOKE, [*FEW, f"data.cache_dir={folder / 'cache'}", *encoder, *keys])
        components = build_components(recipe, start_accelerator(recipe), run=folder)
        return Made(recipe, components, collate([components.exams["train"][number] for number in range(4)]).to("cpu"))

    return make


@pytest.fixture(scope="module")
def source(made: Callable[..., Made], tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Path]:
    """A model whose every number is its own, also its running statistics; and the run that has it."""
    run, source = tmp_path_factory.mktemp("source") / "run", made("train.seed=5")
    torch.manual_seed(0)
    with torch.no_grad():
        for value in source.components.task.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) / 4)
    state = {name: value.clone().contiguous() for name, value in source.components.task.state_dict().items()}
    train_state = TrainState(step=7, best_score=0.25, best_step=7, val_scores={"step-7": 0.25})
    notes = {PATIENTS_FILE: patients_seen(source.recipe, source.components.exams, None)}
    texts = ModelTexts(source.components.tokenizer, portable(source.recipe), notes)
    write_checkpoint(run / "checkpoints", Snapshot(train_state, {}, state, texts), RetentionPolicy(1, 1, True))
    return source, run


@pytest.mark.parametrize("inner", ["", "checkpoints/step-7"])
def test_the_model_generates_what_the_source_generates_and_the_origin_is_stored(
    made: Callable[..., Made], source: tuple[Made, Path], inner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, run = source
    ours = made("train.seed=6", "train.freeze=[encoder]")
    head = ours.components.task.losses["topic"].head[1].weight.clone()
    assert not torch.allclose(ours.logits(), theirs.logits(), atol=0.1)
    origin = ours.begin(run / inner)
    assert torch.equal(ours.logits(), theirs.logits())
    assert torch.equal(ours.components.task.losses["topic"].head[1].weight, head), "losses have new weights"
    assert not any(weight.requires_grad for weight in ours.components.task.encoder.parameters())
    model = run / inner / "model" / "model.safetensors"
    components = theirs.components.task.encoder, theirs.components.task.decoder
    assert origin == {
        "model": str(model.parent),
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "step": 7,
        "score": 0.25,
        "dataset": {"name": "phantom", **theirs.recipe.data.dataset.keys},
        "tensors": len(load_file(model)),
        "parameters": sum(weight.numel() for part in components for weight in part.parameters()),
    }
    printed = capsys.readouterr().out
    assert f"initial weights: {model.parent}, step 7 (val/bleu_4 0.2500), {origin['tensors']} tensors, 0." in printed


def test_init_from_needs_only_the_model_folder(
    made: Callable[..., Made], source: tuple[Made, Path], tmp_path: Path
) -> None:
    theirs, run = source
    shutil.copytree(run / "model", tmp_path / "model")
    ours = made()
    origin = ours.begin(tmp_path)
    assert (origin["step"], origin["score"]) == (None, None) and torch.equal(ours.logits(), theirs.logits())


def test_excluded_parts_keep_random_weights_and_may_have_other_shapes(
    made: Callable[..., Made], source: tuple[Made, Path]
) -> None:
    theirs, run = source
    keys = ("model.decoder.feedforward=32", "init_exclude=[decoder]", f"init_from={run}")
    ours, fresh = made(*keys), made(*keys)
    ours.begin(run)
    pairs = [
        (ours.components.task.encoder, theirs.components.task.encoder),
        (ours.components.task.decoder, fresh.components.task.decoder),
    ]
    for one, other in pairs:
        assert not [
            name for name, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[name])
        ]


def test_a_decoder_that_was_never_trained_is_not_loaded(
    made: Callable[..., Made], source: tuple[Made, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its words and shapes need not be those of this run."""
    theirs, run = source
    shutil.copytree(run / "model", tmp_path / "model")
    saved = tmp_path / "model" / "recipe.yaml"
    saved.write_text(saved.read_text().replace("freeze: []", "freeze: [decoder]"))
    write_manifest(tmp_path / "model")
    ours, fresh = (made("model.decoder.feedforward=32", f"init_from={tmp_path}") for _ in range(2))
    origin = ours.begin(tmp_path)
    for part, expected in (("encoder", theirs), ("decoder", fresh)):
        one, two = (each.components.task.get_submodule(part).state_dict() for each in (ours, expected))
        assert [name for name, value in one.items() if not torch.equal(value, two[name])] == []
    assert origin["tensors"] == len(theirs.components.task.encoder.state_dict())
    assert "random: decoder (not trained there)" in capsys.readouterr().out


def test_keys_that_change_no_shape_are_printed(
    made: Callable[..., Made], source: tuple[Made, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, run = source
    heads = theirs.recipe.model.decoder.keys["heads"]
    made("model.decoder.heads=1").begin(run)
    printed = capsys.readouterr().out
    assert f"model.decoder.heads was {heads}, now 1" in printed and heads > 1
    made("model.decoder.heads=1", "init_exclude=[decoder]", f"init_from={run}").begin(run)
    assert "notice:" not in capsys.readouterr().out


def test_a_tied_weight_is_excluded_by_either_name(
    made: Callable[..., Made], source: tuple[Made, Path], tmp_path: Path
) -> None:
    """Else it would be brought by the one that was not named."""
    run = tmp_path / "run"
    shutil.copytree(source[1] / "model", run / "model")
    (file := run / "model" / "model.safetensors").unlink()  # the same bytes as those of its source
    weights = load_file(source[1] / "model" / "model.safetensors")
    save_file(weights | {"decoder.lm_head.weight": weights["decoder.embed_tokens.weight"].clone()}, file)
    write_manifest(run / "model")
    for part in ("embed_tokens", "lm_head"):
        ours = made(f"init_exclude=[decoder.{part}]", f"init_from={run}")
        decoder = ours.components.task.decoder
        decoder.lm_head.weight = decoder.embed_tokens.weight
        before = decoder.embed_tokens.weight.clone()
        ours.begin(run)
        assert torch.equal(decoder.embed_tokens.weight, before)


def complaint(made: Callable[..., Made], run: Path, *keys: str, **asked: Any) -> Problem:
    ours = made(*keys, **asked)
    before = {name: value.clone() for name, value in ours.components.task.state_dict().items()}
    with pytest.raises(UserError) as raised:
        ours.begin(run)
    after = ours.components.task.state_dict()
    assert not [name for name in before if not torch.equal(before[name], after[name])], "all fits, or nothing is loaded"
    (problem,) = raised.value.problems
    return problem


def test_all_shape_mismatches_are_reported_at_once_with_a_hint(
    made: Callable[..., Made], source: tuple[Made, Path]
) -> None:
    _, run = source
    keys = ["model.decoder.feedforward=32", "model.decoder.layers=2"]
    misfit = complaint(made, run, *keys, encoder=())
    assert (misfit.code, misfit.place) == ("does-not-fit", "init_from") and str(run / "model") in misfit.found
    shapes = r"3 have other shapes: decoder\.layers\.0\.feedforward\.0\.weight \(64 x 64 there, 32 x 64 here\), "
    assert re.search(shapes, misfit.found), misfit.found
    assert re.search(r"\d+ are missing there: encoder\.layers\.0\.weight, ", misfit.found)
    assert re.search(r"\d+ are unknown here: encoder\.backbone\.", misfit.found)
    (skip,) = re.findall(r"'(init_exclude=\[.*\])'", misfit.hint)
    assert "decoder.layers.1" in skip and "decoder.layers.0.feedforward.0" in skip and "encoder.backbone" in skip
    made(*keys, skip, f"init_from={run}", encoder=()).begin(run)  # the way out is one


def test_weights_of_another_vocabulary_are_refused_even_with_the_same_shape(
    made: Callable[..., Made], source: tuple[Made, Path]
) -> None:
    theirs, run = source
    misfit = complaint(made, run, "data.dataset.organ=thyroid")
    other = made("data.dataset.organ=thyroid").components.tokenizer.vocabulary
    mine = theirs.components.tokenizer.vocabulary
    sizes = f"{len(mine)} there and {len(other)} here, {len(set(mine) ^ set(other))} words are in one only"
    assert f"belong to other words (vocabularies of {sizes}): decoder.embed_tokens.weight, " in misfit.found
    (skip,) = re.findall(r"'(init_exclude=\[decoder.embed_tokens, decoder.lm_head\])'", misfit.hint)
    ours = made("data.dataset.organ=thyroid", skip, f"init_from={run}")
    ours.begin(run)  # the way out is one
    one, two = (m.components.task.decoder.state_dict()["layers.0.feedforward.0.weight"] for m in (ours, theirs))
    assert torch.equal(one, two), "all but the words is taken"
    turned = made("init_exclude=[decoder.embed_tokens]", f"init_from={run}")
    turned.components.tokenizer.vocabulary[-2:] = turned.components.tokenizer.vocabulary[:-3:-1]
    with problem("does-not-fit", "init_from") as found:
        turned.begin(run)
    assert "in another order): decoder.lm_head.weight" in found[0].found
    assert "'init_exclude=[decoder.lm_head]'" in found[0].hint


@pytest.mark.parametrize(
    ("key", "code"),
    [("init_exclude=[decoder.embed_token]", "unknown-name"), ("init_exclude=[encoder, decoder]", "ignored-setting")],
)
def test_init_exclude_names_an_existing_part_and_not_the_whole_model(
    made: Callable[..., Made], source: tuple[Made, Path], key: str, code: str
) -> None:
    found = complaint(made, source[1], key, f"init_from={source[1]}")
    assert (found.code, found.place) == (code, "init_exclude")
    assert code != "unknown-name" or "decoder.embed_tokens" in found.hint


def test_a_split_leak_is_found_over_two_stages_of_init_from(
    made: Callable[..., Made], source: tuple[Made, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = source[1]
    ours = made("data.dataset.test_exams=4")
    mine = ours.components.exams["test"].exams

    def refused(folder: Path, split: str) -> str:
        ours.components.exams["test"].exams = [*mine, *ours.components.exams[split].exams]
        with problem("split-leak", "init_from") as found:
            ours.begin(folder)
        ours.components.exams["test"].exams = mine
        return str(found[0])

    message = refused(run, "train")
    assert f"in train of {run / 'model'}" in message and "data.dataset.test_exams (1 there, 4 here)" in message
    assert "in val of" in refused(run, "val"), "the model was selected by them"
    second = tmp_path / "second" / "model"  # trained since on other data, with its source's patients among the seen
    shutil.copytree(run / "model", second)
    data = ours.recipe.data.model_copy(update={"dataset": Choice(name="manifest")})
    theirs = ours.recipe.model_copy(update={"data": data})
    notes = second / "patients.json"
    notes.write_text(json.dumps(patients_seen(theirs, ours.components.exams, run / "model")))
    write_manifest(second)
    assert "in train of" in refused(second.parent, "train")
    assert ours.begin(run)["dataset"]["name"] == "phantom" and "notice:" not in capsys.readouterr().out
    notes.write_text(json.dumps(patients_seen(theirs, ours.components.exams, None)))
    write_manifest(second)
    ours.begin(second.parent)
    assert f"notice: init_from: {second} was trained on the data sets manifest only" in capsys.readouterr().out
    notes.unlink()
    write_manifest(second)
    ours.begin(second.parent)
    assert f"notice: init_from: {second} records no patients" in capsys.readouterr().out


def test_patients_are_stored_as_hashes(source: tuple[Made, Path]) -> None:
    theirs, run = source
    stored = json.loads((run / "model" / "patients.json").read_text())
    patients = {split: {exam.patient for exam in theirs.components.exams[split].exams} for split in ("train", "val")}
    assert {split: len(stored[split]) for split in patients} == {split: len(ids) for split, ids in patients.items()}
    assert not [patient for ids in patients.values() for patient in ids if patient in stored["train"] + stored["val"]]
    other = sha256_of("manifest", next(iter(patients["train"])))
    assert other not in stored["train"] and sha256_of("phantom", next(iter(patients["train"]))) in stored["train"]


def sha256_of(dataset: str, patient: str) -> str:
    return hashlib.sha256(f'["{dataset}", "{patient}"]'.encode()).hexdigest()


def test_a_checkpoint_of_another_format_initializes_without_step_and_score(
    made: Callable[..., Made], source: tuple[Made, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(source[1], tmp_path / "run")
    hashed: list[str] = []
    monkeypatch.setattr("framework.checkpoint.format.verify_checkpoint", lambda path: hashed.append(path))
    monkeypatch.setattr("framework.run.init_from.verify_checkpoint", lambda path: hashed.append(path))
    assert find_source(str(tmp_path / "run")).step == 7 and not hashed, "the checkpoint is not hashed for its step"
    monkeypatch.undo()
    checkpoint = tmp_path / "run" / "checkpoints" / "step-7"
    state = json.loads((checkpoint / "trainer.json").read_text())
    for text in (json.dumps(state | {"format": 1}), "[]", "{", None):
        (checkpoint / "trainer.json").write_text(text) if text else (checkpoint / "trainer.json").unlink()
        origin = made().begin(tmp_path / "run")
        assert (origin["step"], origin["score"]) == (None, None)
    (checkpoint / "trainer.json").write_text(json.dumps(state | {"format": 1}))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    data = (checkpoint / "trainer.json").read_bytes()
    manifest["trainer.json"] = [len(data), hashlib.sha256(data).hexdigest()]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with problem("wrong-version", "step-7"):
        find_source(str(checkpoint))


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        (["init_exclude=[decoder]"], "ignored-setting"),
        (["init_exclude=[losses.topic]", "init_from=x"], "unknown-name"),
    ],
)
def test_init_exclude_needs_init_from_and_names_parts_of_the_model(keys: list[str], code: str) -> None:
    with problem(code, "init_exclude"):
        load_recipe("smoke", keys)


def test_a_source_that_is_missing_or_damaged_is_refused(source: tuple[Made, Path], tmp_path: Path) -> None:
    with problem("no-model", "init_from"):
        find_source(str(tmp_path))
    broken = tmp_path / "checkpoints" / "step-7"
    shutil.copytree(source[1] / "checkpoints" / "step-7", broken)
    (broken / "model" / "model.safetensors").write_bytes(b"x")
    with problem("damaged-checkpoint", "model.safetensors"):
        find_source(str(broken))


def test_a_renamed_checkpoint_is_a_source(source: tuple[Made, Path], tmp_path: Path) -> None:
    renamed = tmp_path / "checkpoints" / "aside-step-7-20260101-120000"
    shutil.copytree(source[1] / "checkpoints" / "step-7", renamed)
    assert find_source(str(renamed)) == replace(
        find_source(str(source[1] / "checkpoints" / "step-7")), model=renamed / "model"
    )


# Without losses that have heads, so that the initial weights determine the first step.
PLAIN = ["distiller=none", "~losses.topic", "~losses.global_semantic", "train.epochs=2", "checkpoint.every_steps=3"]


@pytest.mark.long
@pytest.mark.parametrize(("strategy", "processes"), [("ddp", 1), ("ddp", 2), ("zero2", 2), ("zero3", 2), ("fsdp", 2)])
def test_a_run_with_initial_weights_resumes_without_its_source(
    smoke_run: Path, work: Path, strategy: str, processes: int
) -> None:
    """A resumed run without its source equals an uninterrupted run, on all processes and under every strategy."""
    there = work / f"source-{strategy}-{processes}"
    shutil.copytree(smoke_run, there)
    keys = [*PLAIN, f"init_from={there.name}", "train.freeze=[encoder]", f"distributed.strategy={strategy}"]
    name = f"from-{strategy}-{processes}"
    done = launch(SMOKE, *keys, f"run.name={name}", cwd=work, processes=processes)
    assert done.stdout.count("initial weights: ") == 1
    run = work / "runs" / "smoke" / name
    first = records(run, "train/loss")
    assert first[1] < records(smoke_run, "train/next_token")[3], "it begins where the other ended"
    noted = json.loads((run / "environment.json").read_text())["launch"]["init_from"]
    assert noted["sha256"] == hashlib.sha256((there / "model" / "model.safetensors").read_bytes()).hexdigest()
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (there, run))
    frozen = [weight for weight in before if weight.startswith("encoder.")]
    assert frozen and not [weight for weight in frozen if not torch.equal(before[weight], after[weight])]
    moved = [weight for weight in before if not torch.equal(before[weight], after[weight])]
    assert len(moved) > len(before) / 3
    shutil.rmtree(there)
    for step in sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(run / "checkpoints" / f"step-{step}")
    done = launch(SMOKE, *keys, f"resume={run}", cwd=work, processes=processes)
    assert "resumed from" in done.stdout and "initial weights" not in done.stdout
    again = records(run, "train/loss")
    assert again.keys() == first.keys() and max(abs(first[step] - again[step]) for step in first) < 1e-6
    assert json.loads((run / "environment.json").read_text())["launch"]["init_from"] == noted


@pytest.mark.long
def test_a_missing_source_stops_a_run_before_it_starts(work: Path) -> None:
    done = launch(SMOKE, "init_from=runs/smoke/nowhere", "run.name=lost", cwd=work, check=False)
    assert done.returncode == 2 and "[no-model]" in done.stderr and "Traceback" not in done.stderr
