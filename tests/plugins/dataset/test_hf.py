"""Exams in data sets of Hugging Face `datasets`, loaded by `datasets` itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import ROOT, launch, problem
from PIL import Image

from plugins.dataset.hf import HuggingFaceDataset

datasets = pytest.importorskip("datasets")

COLUMNS = {"image": "image", "report": "report", "patient": "pid"}
PARTS = {"train": 4, "validation": 2, "test": 2}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    yield


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (9, 8), dtype=np.uint8)


def write_folder(root: Path, parts: dict[str, int] = PARTS) -> Path:
    """A folder of images as `imagefolder` reads it."""
    number = 0
    for split, count in parts.items():
        lines = ["file_name,report,pid"]
        (root / split).mkdir(parents=True)
        for _ in range(count):
            Image.fromarray(pixels(number)).save(root / split / f"{number}.png")
            lines.append(f"{number}.png,Report {number}.,{number}.0")
            number += 1
        (root / split / "metadata.csv").write_text("\n".join(lines))
    return root


Build = Callable[..., HuggingFaceDataset]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def make(source: Path | str, **keys: Any) -> HuggingFaceDataset:
        keys = {"columns": COLUMNS, **keys}
        return HuggingFaceDataset(source=str(source), cache_dir=str(tmp_path / "cache"), **keys)

    return make


def saved(tmp_path: Path) -> Path:
    found = datasets.load_dataset(str(write_folder(tmp_path / "exams")), cache_dir=str(tmp_path / "own"))
    found.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_a_folder_of_images_has_its_files_reports_and_splits(build: Build, tmp_path: Path) -> None:
    found = build(write_folder(tmp_path / "exams"))
    splits = found.splits()
    assert {name: len(exams) for name, exams in splits.items()} == {"train": 4, "val": 2, "test": 2}
    exam = splits["val"][0]
    assert (exam.patient, exam.report, exam.views[0].name) == ("4", "Report 4.", "4.png")
    assert np.array_equal(exam.views[0].load(), pixels(4))
    key = found.cache_key
    assert build(tmp_path / "exams").cache_key == key
    Image.fromarray(pixels(99)).save(tmp_path / "exams" / "train" / "0.png")
    assert build(tmp_path / "exams").cache_key != key


def test_a_saved_data_set_has_the_same_exams(build: Build, tmp_path: Path) -> None:
    splits = build(saved(tmp_path)).splits()
    for split, exams in build(tmp_path / "exams").splits().items():
        for one, other in zip(exams, splits[split], strict=True):
            assert (one.id, one.patient, one.report) == (other.id, other.patient, other.report)
            assert np.array_equal(one.views[0].load(), other.views[0].load())


def test_parquet_files_are_split_by_patient(build: Build, tmp_path: Path) -> None:
    rows = datasets.load_from_disk(str(saved(tmp_path)))["train"]
    for number in range(8):
        rows.map(lambda row, n=number: {"pid": row["pid"] + 10 * n}).to_parquet(tmp_path / f"part-{number}.parquet")
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    splits = build(tmp_path / "part-*.parquet", shares=shares).splits()
    assert sum(map(len, splits.values())) == 32 and all(splits.values())
    assert splits["train"][0].views[0].load().shape == (9, 8)


def test_rows_of_an_exam_and_lists_of_images_are_its_views(build: Build, tmp_path: Path) -> None:
    listed = datasets.Features(
        {"views": datasets.List(datasets.Image()), "report": datasets.Value("string"), "exam": datasets.Value("string"),
         "set": datasets.Value("string")}
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for number, split in enumerate(("train", "train", "val", "test", "other")):
        images = [Image.fromarray(pixels(number)), Image.fromarray(pixels(number + 10))]
        exam = f"e{number // 2 if number < 2 else number}"
        rows.append({"views": images, "report": "Text.", "exam": exam, "set": split})
    datasets.Dataset.from_list(rows, features=listed).save_to_disk(str(tmp_path / "lists"))
    columns = {"image": "views", "report": "report", "exam": "exam", "split": "set"}
    exams = build(tmp_path / "lists", columns=columns, splits={"other": None}).splits()["train"]
    assert [exam.id for exam in exams] == ["e0"] and len(exams[0].views) == 4
    assert np.array_equal(exams[0].views[3].load(), pixels(11))
    with problem("unknown-name", "data.dataset.splits"):
        build(tmp_path / "lists", columns=columns).splits()


def test_an_unknown_column_and_one_without_images_are_named(build: Build, tmp_path: Path) -> None:
    write_folder(tmp_path / "exams")
    with problem("unknown-name", "data.dataset.columns.report") as found:
        build(tmp_path / "exams", columns={**COLUMNS, "report": "raport"}).splits()
    assert "'report'" in found[0].hint
    with problem("wrong-type", "data.dataset.columns.image"):
        build(tmp_path / "exams", columns={**COLUMNS, "image": "pid"}).splits()


def test_rows_that_cannot_be_used_are_listed_with_their_place(build: Build, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "exams")
    table = root / "train" / "metadata.csv"
    table.write_text(table.read_text().replace("Report 1.", " ").replace(",3.0", ",4.0"))
    with problem("empty-report", "train row 2") as found:
        build(root).splits()
    assert [each.code for each in found] == ["empty-report", "split-leak"]


def test_what_is_no_data_set_is_refused(build: Build, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, code in (
        (tmp_path / "empty", "unreadable-file"), (tmp_path / "none", "no-such-file"),
        (tmp_path / "*.parquet", "no-such-file"), ("someone/something", "hub-refused"),
    ):  # fmt: skip
        with problem(code):
            build(source).splits()
    with problem("empty-split"):
        build(write_folder(tmp_path / "one", {"train": 3})).splits()


def test_code_beside_the_data_is_not_run(build: Build, tmp_path: Path) -> None:
    root = tmp_path / "exams"
    root.mkdir()
    (root / "exams.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with problem("unreadable-file", "exams"):
        build(root).splits()
    assert not (tmp_path / "ran").exists()


def test_settings_that_contradict_each_other_are_refused(build: Build) -> None:
    with problem("conflicting-settings", "data.dataset.shares"):
        build("x", columns={**COLUMNS, "split": "set"}, shares={"train": 0.6, "val": 0.2, "test": 0.2})
    with problem("missing-key", "data.dataset.columns.image"):
        build("x", columns={"report": "report"})


def test_a_recipe_trains_from_a_folder_of_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "exams", {"train": 16, "validation": 2, "test": 2})
    source = "data.dataset={_delete_: true, name: hf, source: exams, columns: {image: image, report: report}}"
    done = launch(str(ROOT / "recipes" / "smoke.yaml"), source, "train.epochs=1", "distiller.topics=2", cwd=tmp_path)
    assert "train 16, val 2, test 2" in done.stdout


def test_a_missing_package_is_named(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with problem("missing-package", "data.dataset") as found:
        build("x").splits()
    assert "sonoscribe[hf]" in found[0].hint


def test_settings_that_would_do_nothing_are_refused(build: Build, tmp_path: Path) -> None:
    with problem("ignored-setting", "data.dataset.splits"):
        build("x", splits={"external": None}, shares={"train": 0.6, "val": 0.2, "test": 0.2})
    folder = saved(tmp_path)
    with problem("ignored-setting", "data.dataset.revision"):
        build(tmp_path / "exams", revision="main").splits()
    with problem("ignored-setting", "data.dataset.configuration"):
        build(folder, configuration="default").splits()
