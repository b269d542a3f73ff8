"""Writing shards: in parallel, continued after a kill, with the bytes of image files."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from grey_exams import exam
from harness import ROOT, problem
from PIL import Image

from framework.build import build_dataset
from framework.data import shard_writing
from framework.data.image_file import FileView
from framework.data.shard_writing import write_shards
from framework.exam import Exam
from framework.recipe import load_recipe
from framework.runtime.files import digest


@dataclass
class Source:
    exams: dict[str, Sequence[Exam]]
    cache_key: str = "k"
    asked: list[str] = field(default_factory=list)

    def splits(self) -> dict[str, Sequence[Exam]]:
        return self.exams


def greys(count: int = 5, broken: int | None = None) -> Source:
    train = [exam(number, -1 if number == broken else number, number + 1) for number in range(count)]
    return Source({"train": train, "val": [exam(100, 7)], "test": [exam(101, 8)]})


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_shards_are_tar_files_of_webdataset_in_the_order_of_the_exams(tmp_path: Path) -> None:
    index = write_shards(greys(), tmp_path / "out", exams_per_shard=2, processes=1)
    assert [shard.exams for shard in index.splits["train"].shards] == [2, 2, 1]
    assert index.splits["train"].patients == 5 and set(index.splits) == {"train", "val", "test"}
    with tarfile.open(tmp_path / "out" / "train-000001.tar") as tar:
        names = tar.getnames()
        known = json.load(tar.extractfile(names[0]))  # type: ignore[arg-type]
    assert names[:3] == ["000000002.json", "000000002.0.png", "000000002.1.png"]
    assert (known["id"], known["report"]) == ("e2", "text") and known["views"][1]["file"] == names[2]


def test_webdataset_itself_reads_the_shards(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    write_shards(greys(), tmp_path / "out", exams_per_shard=2, processes=1)
    urls = [str(path) for path in sorted((tmp_path / "out").glob("train-*.tar"))]
    found = list(wds.WebDataset(urls, shardshuffle=False).decode("l8"))
    assert [sample["json"]["id"] for sample in found] == [f"e{number}" for number in range(5)]
    assert [int(sample["1.png"][0, 0]) for sample in found] == [1, 2, 3, 4, 5]


def test_two_processes_write_the_same_shards_as_one(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "smoke.yaml", ["data.dataset.exams=9"])
    for name, processes in (("one", 1), ("two", 2)):
        write_shards(build_dataset(recipe), tmp_path / name, exams_per_shard=2, processes=processes)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that a run left before its index was written."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shard_writing, "_merge", stop)
        write_shards(greys(), tmp_path / "out", exams_per_shard=2, processes=1)
    return tmp_path / "out"


def test_a_run_that_was_stopped_continues_with_its_finished_shards(tmp_path: Path, stopped: Path) -> None:
    kept, missing, damaged = (stopped / f"train-{number:06d}.tar" for number in range(3))
    missing.unlink()
    content = bytearray(damaged.read_bytes())
    content[600] ^= 1
    damaged.write_bytes(content)
    before = kept.stat().st_mtime_ns
    write_shards(greys(), stopped, exams_per_shard=2, processes=1)
    write_shards(greys(), tmp_path / "whole", exams_per_shard=2, processes=1)
    assert kept.stat().st_mtime_ns == before and hashes(stopped) == hashes(tmp_path / "whole")


def test_shards_of_other_data_or_settings_and_complete_ones_are_not_continued(tmp_path: Path, stopped: Path) -> None:
    with problem("file-exists", "out"):
        write_shards(greys(), stopped, exams_per_shard=3, processes=1)
    write_shards(greys(), stopped, exams_per_shard=2, processes=1)
    with problem("file-exists", "out"):
        write_shards(greys(), stopped, exams_per_shard=2, processes=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with problem("file-exists", "other"):
        write_shards(greys(), tmp_path / "other", processes=1)


def test_a_broken_view_stops_or_leaves_its_exam_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = greys(broken=3)
    with problem("broken-image", "exam e3"):
        write_shards(source, tmp_path / "out", exams_per_shard=2, processes=1)
    assert not (tmp_path / "out" / "index.json").exists()
    index = write_shards(source, tmp_path / "skipped", exams_per_shard=2, processes=1, on_broken="skip")
    assert [shard.exams for shard in index.splits["train"].shards] == [2, 1, 1]
    assert "left out: exam e3" in capsys.readouterr().out


def test_a_patient_in_two_splits_is_refused_before_a_shard_is_written(tmp_path: Path) -> None:
    with problem("split-leak", "exam e1"):
        write_shards(Source({"train": [exam(0, 1)], "val": [Exam("e1", "p0", (), "text")]}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_image_files_keep_their_bytes(tmp_path: Path) -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep.astype(np.uint8)).save(tmp_path / "grey.JPG", "jpeg")
    views = tuple(FileView(str(tmp_path / name), name, (0.0, 4095.0)) for name in ("deep.png", "grey.JPG"))
    write_shards(Source({"train": [Exam("e", "p", views, "text")]}), tmp_path / "out", processes=1)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        for name, file in (("000000000.0.png", "deep.png"), ("000000000.1.jpg", "grey.JPG")):
            assert tar.extractfile(name).read() == (tmp_path / file).read_bytes()  # type: ignore[union-attr]
