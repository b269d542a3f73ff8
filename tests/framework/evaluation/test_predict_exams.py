"""The reports of many exams: where exams are listed, what stops the command, and how it continues."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from harness import problem
from PIL import Image

from framework.cli import main
from framework.evaluation.predict import Predictor
from framework.evaluation.predict_exams import ListedExam, list_exams, predict_exams


def view(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 64), dtype=np.uint8)).save(path)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_folder_is_an_exam_with_its_images_in_natural_order(tmp_path: Path) -> None:
    for name in ("b/view_10.png", "b/view_2.png", "a/1.JPG", "loose.png", ".hidden/1.png"):
        view(tmp_path / name)
    (tmp_path / "a" / "notes.txt").touch()
    assert list_exams(tmp_path) == [
        ListedExam("a", tmp_path / "a", ("1.JPG",)),
        ListedExam("b", tmp_path / "b", ("view_2.png", "view_10.png")),
    ]


def test_each_image_is_an_exam_where_there_is_no_folder(tmp_path: Path) -> None:
    for name in ("10.png", "9.png"):
        view(tmp_path / name)
    assert [exam.id for exam in list_exams(tmp_path)] == ["9.png", "10.png"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e.jsonl", '{"id": 7, "images": ["x/1.png"]}\n\n{"uid": "8", "image_path": "2.png"}'),
        ("e.json", '[{"id": 7, "images": ["x/1.png"]}, {"uid": "8", "image_path": "2.png", "finding": "A cyst."}]'),
        ("e.json", '\ufeff{"train": [{"id": 7, "image": "x/1.png"}], "other": [{"id": "8", "images": ["2.png"]}]}'),
    ],
)
def test_a_file_lists_exams_relative_to_itself_or_to_a_folder(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    expected = [("7", ("x/1.png",)), ("8", ("2.png",))]
    for folder, images in ((tmp_path, None), (tmp_path / "views", tmp_path / "views")):
        assert list_exams(tmp_path / name, images) == [
            ListedExam(exam_id, folder, files) for exam_id, files in expected
        ]


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ('{"id": 1, "images": ["a"]}\n{"id": 1, "images": ["b"]}', "duplicate-id", "e.jsonl, exam 1"),
        ('{"id": 1, "images": ["a"]}\n{"images": ["b"]}', "missing-key", "e.jsonl:2"),
        ('{"id": 1, "images": []}', "missing-key", "e.jsonl:1"),
        ("3", "missing-key", "e.jsonl:1"),
        ('{"id": 1,\n', "wrong-format", "e.jsonl:1:10"),
        ("", "empty-split", "e.jsonl"),
    ],
)
def test_a_file_that_lists_no_exams_is_refused_with_the_line(text: str, code: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text(text)
    with problem(code, f"{tmp_path / place}"):
        list_exams(tmp_path / "e.jsonl")


def test_a_batch_of_exams_with_different_numbers_of_views_gives_the_reports_of_each(
    smoke_run: Path, tmp_path: Path
) -> None:
    files = [view(tmp_path / f"{number}.png", number) for number in range(4)]
    model = Predictor(smoke_run)
    exams = [files[:1], files[1:3], files[3:]]
    assert model.reports_of([model.load(images) for images in exams]) == [model.report(images) for images in exams]


def test_findings_below_a_threshold_are_in_the_lines(smoke_run: Path, tmp_path: Path) -> None:
    for number in range(2):
        view(tmp_path / "views" / f"{number}.png", number)
    exams = list_exams(tmp_path / "views")
    for threshold, names in ((1.0, {"finding", "confidence", "words"}), (0.0, set())):
        out = tmp_path / f"{threshold}.jsonl"
        predict_exams(smoke_run, exams, out, unsure=threshold)
        for row in rows(out):
            assert {name for finding in row["unsure"] for name in finding} == names
            assert all(finding["confidence"] < threshold for finding in row["unsure"])
    predict_exams(smoke_run, exams, tmp_path / "plain.jsonl")
    assert all("unsure" not in row for row in rows(tmp_path / "plain.jsonl"))


def test_broken_images_do_not_stop_the_others_and_are_tried_again(smoke_run: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "out.jsonl", tmp_path / "e.jsonl"
    view(tmp_path / "1.png", 1)
    (tmp_path / "2.png").write_bytes(b"no image")
    view(tmp_path / "3.png", 3)
    images = {"a": "1.png", "b": "2.png", "c": "../3.png", "d": "3.png", "e": "missing.png"}
    source.write_text("".join(json.dumps({"id": key, "images": [name]}) + "\n" for key, name in images.items()))
    with problem("broken-image", "exam b") as found:
        predict_exams(smoke_run, list_exams(source), out, batch_size=2)
    assert [each.place for each in found] == ["exam b", "exam c", "exam e"]
    assert [(row["id"], "report" in row, "error" in row) for row in rows(out)] == [
        ("a", True, False), ("b", False, True), ("c", False, True), ("d", True, False), ("e", False, True),
    ]  # fmt: skip
    view(tmp_path / "2.png", 2)
    with problem("no-such-file", "exam c"):
        predict_exams(smoke_run, list_exams(source), out)
    assert [(row["id"], "report" in row) for row in rows(out)] == [
        ("a", True), ("d", True), ("b", True), ("c", False), ("e", False),
    ]  # fmt: skip


def test_an_interrupted_command_continues_after_the_last_whole_line(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        view(tmp_path / "views" / f"{number}.png", number)
    exams, out = list_exams(tmp_path / "views"), tmp_path / "out.jsonl"
    predict_exams(smoke_run, exams, out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-9])
    asked: list[int] = []
    reports_of = Predictor.reports_of
    monkeypatch.setattr(
        Predictor, "reports_of", lambda self, images, **_: [asked.append(len(images)), reports_of(self, images)][1]
    )
    predict_exams(smoke_run, exams, out)
    assert out.read_bytes() == whole and asked == [1]
    predict_exams(smoke_run, exams, out)
    assert out.read_bytes() == whole and asked == [1]


def test_reports_of_another_model_and_other_files_are_not_continued(smoke_run: Path, tmp_path: Path) -> None:
    view(tmp_path / "views" / "1.png")
    exams, out = list_exams(tmp_path / "views"), tmp_path / "out.jsonl"
    predict_exams(smoke_run, exams, out, num_beams=2)
    with problem("conflicting-settings", f"{out}:1"):
        predict_exams(smoke_run, exams, out, num_beams=1)
    out.write_text('{"id": 1, "images": ["1.png"]}\n')
    with problem("damaged-file", f"{out}:1"):
        predict_exams(smoke_run, exams, out)
    assert out.read_text() == '{"id": 1, "images": ["1.png"]}\n'


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "conflicting-settings"),
        (["1.png", "--exams", "."], "conflicting-settings"),
        (["--exams", "."], "missing-key"),
        (["1.png", "--out", "o.jsonl"], "ignored-setting"),
        (["--exams", ".", "--out", "o.jsonl", "--json"], "ignored-setting"),
        (["--exams", "missing", "--out", "o.jsonl"], "no-such-file"),
        (["--exams", ".", "--out", "missing/o.jsonl"], "no-such-file"),
    ],
)
def test_options_of_one_exam_and_of_many_do_not_mix(
    words: list[str], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(tmp_path), *words])
    assert ended.value.code == 2 and f"[{code}]" in capsys.readouterr().err


def test_the_report_of_one_exam_as_json(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = view(tmp_path / "1.png")
    with pytest.raises(SystemExit):
        main(["predict", str(smoke_run), str(image), "--json"])
    found, expected = json.loads(capsys.readouterr().out), Predictor(smoke_run).report([image])
    assert found["images"] == [str(image)] and found["report"] == expected
    assert [each["finding"] for each in found["findings"]] == [f"{each}" for each in expected.findings]
    assert found["warnings"] == list(expected.warnings)
    assert found["nearest"] == [exam._asdict() for exam in expected.nearest]
