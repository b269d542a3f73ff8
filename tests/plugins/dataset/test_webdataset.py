"""Shards give the exams, batches and losses of the data set from which they were written, and are verified."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, launch, problem, records

from framework.build import build_dataset, load_exams
from framework.data.export import write_manifest
from framework.data.image_cache import UncachedImages
from framework.data.loading import BatchPlan, EpochSampler, ExamSet, build_loader
from framework.data.shard_writing import write_shards
from framework.recipe import load_recipe, portable
from framework.registry import trust
from plugins.dataset.manifest import Manifest
from plugins.dataset.phantom import Phantom
from plugins.dataset.webdataset import ShardedDataset

FEW = ("data.dataset.exams=24", "data.dataset.val_exams=4", "data.dataset.test_exams=4")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training exams in six shards."""
    folder = tmp_path_factory.mktemp("written") / "out"
    write_shards(Phantom(exams=24, val_exams=4, test_exams=4, size=48), folder, exams_per_shard=4, processes=1)
    return folder


@pytest.fixture
def shards(written: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(written, tmp_path / "out"))


def of(folder: Path, **keys: int) -> ShardedDataset:
    return ShardedDataset(shards=str(folder), cache_dir=str(folder.parent / "cache"), **keys)


def pipe(folder: Path) -> str:
    return f"pipe:cat {folder}/{{}}"


def test_shards_have_the_exams_and_pixels_of_their_source(written: Path) -> None:
    source = Phantom(exams=24, val_exams=4, test_exams=4, size=48)
    for split, exams in of(written).splits().items():
        for one, other in zip(source.splits()[split], exams, strict=True):
            assert (one.id, one.patient, one.report, one.rewording) == (
                other.id, other.patient, other.report, other.rewording,
            )  # fmt: skip
            assert json.loads(json.dumps(one.attributes)) == other.attributes
            for view, same in zip(one.views, other.views, strict=True):
                assert view.name == same.name and np.array_equal(view.load(), same.load())
    assert of(written).cache_key == of(written).cache_key


def exam_set(source: ShardedDataset) -> ExamSet:
    exams = load_exams(source)["train"]
    found = ExamSet(exams, UncachedImages({exam.id: exam.views for exam in exams}, 16, 1, None), [[1, 2]] * 24, None)
    found.order = source.training_order(exams)
    return found


def batches(source: ShardedDataset, rank: int, processes: int, workers: int, done: int = 0) -> list[list[str]]:
    """The exam ids of each batch of a process in epoch 3, after `done` steps."""
    exams = exam_set(source)
    sampler = EpochSampler(exams, BatchPlan.plan(4, None, rank, processes), seed=7)
    sampler.set_epoch(3, done)
    return [batch.exam_ids for batch in build_loader(exams, sampler, workers)]


@pytest.mark.parametrize("where", ["folder", "pipe"])
def test_steps_are_the_same_for_any_number_of_processes_and_workers_and_after_resuming(
    where: str, written: Path, tmp_path: Path
) -> None:
    def build() -> ShardedDataset:
        if where == "folder":
            return of(written)
        return ShardedDataset(shards=pipe(written), buffer=2, cache_dir=str(tmp_path))

    expected = batches(build(), 0, 1, 0)
    assert len(expected) == 6 and len({exam_id for batch in expected for exam_id in batch}) == 24
    for processes in (2, 4):
        ranks = [batches(build(), rank, processes, 0) for rank in range(processes)]
        assert [[*itertools.chain(*parts)] for parts in zip(*ranks, strict=True)] == expected
    assert batches(build(), 0, 1, 2) == expected
    assert batches(build(), 0, 1, 2, done=2) == expected[2:]


def test_a_run_from_shards_has_the_losses_of_a_run_from_the_folder_they_were_made_from(tmp_path: Path) -> None:
    smoke = str(ROOT / "recipes" / "smoke.yaml")
    launch("data", "make", smoke, "made", *FEW, cwd=tmp_path)
    folder = "data.dataset={_delete_: true, name: manifest, file: made/manifest.json, images: made}"
    launch("data", "shard", smoke, "out", folder, "--exams", "5", cwd=tmp_path)
    shards = "data.dataset={_delete_: true, name: webdataset, shards: out}"
    found = []
    for name, words in (
        ("folder", [folder]),
        ("shards", [shards, "data.cache_images=false", "data.num_workers=1"]),
    ):
        keys = ["train.epochs=2", "train.log_every=1", f"run.root={name}", *words]
        launch(smoke, *keys, cwd=tmp_path)
        (run,) = (tmp_path / name / "smoke").iterdir()
        found.append(records(run, "train/loss"))
    assert found[0] and found[0] == found[1]


def test_fetched_shards_are_few_at_a_time_and_each_comes_once_an_epoch(written: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = f"pipe:echo {{}} >> {log}; cat {written}/{{}}"
    batches(ShardedDataset(shards=command, buffer=1, cache_dir=str(tmp_path)), 0, 1, 0)
    fetched = [name for name in log.read_text().split() if name.startswith("train-")]
    assert sorted(fetched) == sorted(path.name for path in written.glob("train-*.tar"))
    assert len(list((tmp_path / "shards").rglob("*.tar"))) == 3


def test_a_missing_and_a_truncated_shard_are_both_named_before_training(shards: Path) -> None:
    (shards / "train-000001.tar").unlink()
    with (shards / "train-000002.tar").open("r+b") as file:
        file.truncate(2000)
    with problem("no-such-file", "train-000001.tar") as found:
        of(shards).splits()
    assert [(each.code, Path(each.place).name) for each in found][1:] == [("damaged-file", "train-000002.tar")]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_an_image_that_changed_is_found_when_it_is_read(shards: Path) -> None:
    view = of(shards).splits()["train"][0].views[0]
    flip(shards / "train-000000.tar", view.offset + 60)  # type: ignore[attr-defined]
    with problem("damaged-file", "train-000000.tar"):
        of(shards).splits()["train"][0].views[0].load()
    with problem("damaged-file", "exam breast-"):
        exam_set(of(shards))[0]


def test_lines_of_the_index_that_changed_are_found_at_the_start(shards: Path) -> None:
    flip(shards / "val.jsonl", 20)
    with problem("damaged-file", "val.jsonl"):
        of(shards).splits()


def test_a_missing_index_and_one_of_another_version_are_named(shards: Path) -> None:
    path = shards / "index.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 9'))
    with problem("wrong-version", "index.json"):
        of(shards).splits()
    path.unlink()
    with problem("no-such-file", "index.json"):
        of(shards).splits()


def test_an_index_cannot_reach_beyond_its_shards(shards: Path) -> None:
    """Its lines may have been written by someone else, with hashes that fit."""
    index = json.loads((shards / "index.json").read_text())
    lines = (shards / "val.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    first["views"][0]["offset"] = 10**9
    text = "\n".join([json.dumps(first), *lines[1:], ""])
    (shards / "val.jsonl").write_text(text)
    index["splits"]["val"]["lines"] |= {
        "size": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }  # fmt: skip
    (shards / "index.json").write_text(json.dumps(index))
    with problem("damaged-file", "val.jsonl:1"):
        of(shards).splits()["val"][0]
    secret = shards.parent / "secret.tar"
    secret.write_bytes((shards / "train-000000.tar").read_bytes())
    (shards / "train-000000.tar").unlink()
    (shards / "train-000000.tar").symlink_to(secret)
    with problem("no-such-file", "train-000000.tar"):
        of(shards).splits()


def test_a_command_that_fails_or_prints_something_else_is_named(written: Path, tmp_path: Path) -> None:
    with problem("external-program", "cat"):
        ShardedDataset(shards=f"pipe:cat {tmp_path}/nowhere/{{}}", cache_dir=str(tmp_path)).splits()
    source = ShardedDataset(
        shards=f"pipe:cat {written}/{{}}; case {{}} in *.tar) echo more;; esac", cache_dir=str(tmp_path)
    )
    with problem("damaged-file", "train-000000.tar"):
        source.splits()["train"][0].views[0].load()


def test_other_schemes_and_settings_without_effect_are_refused(written: Path, tmp_path: Path) -> None:
    for shards, code in (
        ("s3://bucket/exams", "unsupported"),
        ("file:///etc", "unsupported"),
        ("pipe:cat", "wrong-format"),
    ):
        with problem(code, "data.dataset.shards"):
            ShardedDataset(shards=shards, cache_dir=str(tmp_path))
    with problem("ignored-setting", "data.dataset.buffer"):
        of(written, buffer=3)


@pytest.fixture
def server(written: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/elsewhere/"):
                self.send_response(302)
                self.send_header("Location", "file:///etc/hostname")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(written))) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_a_url_gives_the_exams_of_the_folder_behind_it(server: str, written: Path, tmp_path: Path) -> None:
    there = ShardedDataset(shards=server, cache_dir=str(tmp_path)).splits()
    for exams, same in zip(there.values(), of(written).splits().values(), strict=True):
        assert [exam.id for exam in exams] == [exam.id for exam in same]
        assert np.array_equal(exams[-1].views[0].load(), same[-1].views[0].load())
    with problem("no-such-file", "nowhere/index.json"):
        ShardedDataset(shards=f"{server}/nowhere", cache_dir=str(tmp_path)).splits()
    with problem("unreadable-file", "elsewhere/index.json"):
        ShardedDataset(shards=f"{server}/elsewhere", cache_dir=str(tmp_path)).splits()


def test_a_command_of_a_saved_recipe_runs_only_if_it_is_trusted(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    marker = tmp_path / "ran"
    command = f"pipe:touch {marker}; cat {written}/{{}}"
    mine = load_recipe(
        ROOT / "recipes" / "smoke.yaml",
        [f"data.dataset={{_delete_: true, name: webdataset, shards: '{command}'}}", f"data.cache_dir={tmp_path}"],
    )
    assert mine.commands == (command,)
    build_dataset(mine)
    portable(mine).write(tmp_path)
    saved = load_recipe(tmp_path / "recipe.yaml")
    with problem("untrusted-code", "data.dataset.shards"):
        build_dataset(saved).splits()
    assert not marker.exists()
    trust.trust_commands(saved.commands)
    assert len(build_dataset(saved).splits()["train"]) == 24 and marker.exists()


def test_the_key_of_the_image_cache_is_refused_where_images_are_needed_before_training() -> None:
    for word in ("data.on_broken=skip", "data.cache_features=true"):
        with problem("conflicting-settings", "data.cache_images"):
            load_recipe(ROOT / "recipes" / "smoke.yaml", ["data.cache_images=false", word])


def test_manifests_and_shards_of_them_read_the_same_bytes(tmp_path: Path) -> None:
    write_manifest(Phantom(exams=3, val_exams=1, test_exams=1, size=48), tmp_path / "made")
    source = Manifest(file=str(tmp_path / "made" / "manifest.json"), images=str(tmp_path / "made"))
    write_shards(source, tmp_path / "out", processes=1)
    for one, other in zip(source.splits()["train"], of(tmp_path / "out").splits()["train"], strict=True):
        assert one.views[0].name == other.views[0].name and np.array_equal(one.views[0].load(), other.views[0].load())
