"""The data set of a table: columns, views of an exam, splits, and every row that cannot be used."""

import csv
import shutil

import numpy as np
import pytest
from harness import problem
from PIL import Image

from framework.build import load_exams, load_reports
from framework.data.check import check
from framework.recipe import load_recipe
from plugins.dataset.table import ExamTable

RANDOM = np.random.default_rng(0)
COLUMNS = {"image": "file", "report": "findings", "exam": "id", "patient": "pid", "split": "set"}
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
HEADER = ["id", "pid", "set", "file", "findings"]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 255, (10, 12), dtype=np.uint8)).save(path)


@pytest.fixture
def listed(tmp_path):
    """Rows that are fine, to be spoilt, and the function that saves them and gives the data set."""
    rows = []
    for number, split in enumerate(["train", "train", "train", "val", "test", "test"], 1):
        picture(tmp_path / "images" / f"{number}.png")
        rows.append([f"{number}.0", f"p{number}", split, f"images\\{number}.png", f"Report {number}; clear."])

    def save(**settings):
        with (tmp_path / "exams.csv").open("w", encoding="gb18030", newline="") as file:
            csv.writer(file, delimiter=";").writerows([HEADER, *rows])
        return ExamTable(**{"file": str(tmp_path / "exams.csv"), "columns": COLUMNS, **settings})

    return rows, save


def lines(problems):
    return [(each.code, each.place.rpartition(", ")[2]) for each in problems]


def test_a_table_from_excel_is_read_and_its_form_is_printed(listed, capsys):
    rows, save = listed
    rows += [["NaN", "", "", "", ""], ["", "", "", "", ""]]
    rows[0][4] = "乳腺腺体回声均匀。"
    found = save().splits()
    exam = found["train"][0]
    assert (exam.id, exam.patient, exam.report) == ("1", "p1", "乳腺腺体回声均匀。")
    assert exam.views[0].name == "images/1.png" and exam.views[0].load().shape == (10, 12)
    assert {name: len(exams) for name, exams in found.items()} == {"train": 3, "val": 1, "test": 2}
    printed = capsys.readouterr().out
    assert "gb18030" in printed and "semicolon" in printed and "2 empty rows" in printed


def test_rows_columns_and_patterns_are_views_of_one_exam(listed, tmp_path):
    rows, save = listed
    for name in ("1b.png", "2/1.png", "2/2.png", "2/10.png"):
        picture(tmp_path / "images" / name)
    rows[1][3] = "images/2/*.png"
    rows.append(["1", "p1", "train", "images/1b.png", ""])
    found = save().splits()["train"]
    assert [[view.name for view in exam.views] for exam in found] == [
        ["images/1.png", "images/1b.png"],
        ["images/2/1.png", "images/2/2.png", "images/2/10.png"],
        ["images/3.png"],
    ]
    del rows[-1]
    for row in rows:
        row[3:] = [f"images/{row[0][0]}.png", "images/1b.png" if row[0] == "1.0" else "NaN"]
    columns = {**COLUMNS, "image": ["file", "findings"], "report": "pid", "patient": "id"}
    assert [len(exam.views) for exam in save(columns=columns).splits()["train"]] == [2, 1, 1]


def test_without_an_exam_column_a_row_is_an_exam_named_by_its_image(listed):
    _, save = listed
    columns = {key: name for key, name in COLUMNS.items() if key not in ("exam", "patient")}
    exams = save(columns=columns).splits()["train"]
    assert [(exam.id, exam.patient) for exam in exams] == [(f"images/{n}",) * 2 for n in (1, 2, 3)]


def test_every_row_that_cannot_be_used_is_named_with_its_line(listed, tmp_path):
    rows, save = listed
    rows[0][4] = " "
    rows[1][3] = "images/gone.png"
    rows[2][0] = "1.23457E+12"
    rows[3][2] = "N/A"
    rows[4][1] = "p1"
    rows += [
        ["6", "p6", "test", "images/6.png", "Report 6; clear."],
        ["6", "p6", "test", "images/1.png", "Other."],
        ["6", "p6", "val", "images/1.png", ""],
        ["", "p9", "test", "images/1.png", "A."],
        ["9", "p9", "test", "", "A."],
        ["10", "p9"],
    ]
    source = save()
    expected = {
        ("empty-report", "line 2"),
        ("no-such-file", "line 3"),
        ("wrong-format", "line 4"),
        ("missing-key", "line 5"),
        ("split-leak", "line 6"),
        ("duplicate-id", "line 8"),
        ("conflicting-settings", "line 9"),
        ("conflicting-settings", "line 10"),
        ("missing-key", "line 11"),
        ("missing-key", "line 12"),
        ("wrong-format", "line 13"),
    }
    with problem("empty-report", place="exams.csv, line 2") as problems:
        source.splits()
    assert set(lines(problems)) == expected
    (tmp_path / "images" / "6.png").write_bytes(b"no image")
    assert {*expected, ("broken-image", "exam 6")} <= set(lines(check(source).errors))


def test_a_long_list_of_problems_is_cut_and_counted(listed):
    rows, save = listed
    rows += [[f"x{n}", "", "train", "no.png", "A."] for n in range(50)]
    with problem("no-such-file", place="line 8") as problems:
        save().splits()
    assert len(problems) == 21 and problems[-1].found == "30 more problems"


def test_every_wrong_column_is_named_with_the_nearest_one(listed):
    _, save = listed
    with problem("unknown-name", place="data.dataset.columns.report") as problems:
        save(columns={**COLUMNS, "report": "findigs", "image": ["file", "fil"]}).splits()
    assert [each.place.rpartition(".")[2] for each in problems] == ["image", "report"]
    assert "'findings'" in problems[1].hint and "pid" in problems[1].hint


@pytest.mark.parametrize(
    "value, near", [("Train", "train"), ("validation", "val"), ("dev", "val"), ("external", "null")]
)
def test_another_spelling_of_a_split_is_refused_until_the_recipe_maps_it(listed, value, near, capsys):
    rows, save = listed
    rows += [[f"{n}", "", value, "images/1.png", "A."] for n in (11, 12)]
    with problem("unknown-name", place="column set") as problems:
        save().splits()
    assert "2 rows" in problems[0].found and "line 8" in problems[0].found and f"{value}: {near}" in problems[0].hint
    found = save(splits={value: None if near == "null" else near}).splits()
    assert sum(map(len, found.values())) == (6 if near == "null" else 8)
    assert ("left out: 2 rows of external" in capsys.readouterr().out) == (near == "null")


def test_splits_by_patient_stay_when_patients_are_added(listed):
    rows, save = listed
    columns = {key: name for key, name in COLUMNS.items() if key != "split"}
    rows[:] = [[f"{n}", f"p{n // 2}", "", "images/1.png", "A."] for n in range(200)]
    settings = {"columns": columns, "shares": SHARES}
    before = {exam.id: split for split, exams in save(**settings).splits().items() for exam in exams}
    assert all(before[f"{n}"] == before[f"{n + 1}"] for n in range(0, 200, 2)) and set(before.values()) == {
        "train", "val", "test",
    }  # fmt: skip
    rows[:0] = [[f"x{n}", f"x{n}", "", "images/1.png", "A."] for n in range(50)]
    after = {exam.id: split for split, exams in save(**settings).splits().items() for exam in exams}
    assert before.items() <= after.items()
    other = {exam.id: split for split, exams in save(**settings, split_seed=1).splits().items() for exam in exams}
    assert other != after


def test_a_split_without_exams_is_refused(listed):
    rows, save = listed
    del rows[3]
    with problem("empty-split", place="exams.csv"):
        save().splits()


@pytest.mark.parametrize(
    "settings, code, place",
    [
        ({"columns": {"report": "findings", "split": "set"}}, "missing-key", "columns.image"),
        ({"columns": {**COLUMNS, "report": ["findings", "id"]}}, "wrong-type", "columns.report"),
        ({"shares": SHARES}, "conflicting-settings", "shares"),
        ({"columns": {"image": "file", "report": "findings"}}, "missing-key", "shares"),
        ({"window": (5, 5)}, "out-of-range", "window"),
        ({"columns": {"image": "a", "report": "b"}, "shares": {"train": 0.7, "val": 0.2}}, "out-of-range", "shares"),
        ({"columns": {"image": "a", "report": "b"}, "shares": {"train": 1.0, "val": 0.0}}, "out-of-range", "shares"),
        (
            {"columns": {"image": "a", "report": "b"}, "shares": SHARES, "splits": {"a": "val"}},
            "ignored-setting",
            "splits",
        ),
    ],
)
def test_settings_that_contradict_one_another_are_refused(listed, settings, code, place):
    with problem(code, place=f"data.dataset.{place}"):
        listed[1](**settings)


def test_names_count_from_the_folder_of_images_and_a_prefix_of_another_machine_is_removed(listed, tmp_path):
    rows, save = listed
    for row in rows:
        row[3] = f"D:\\Export\\{row[3]}"
    with problem("no-such-file", place="line 2") as problems:
        save().splits()
    assert "data.dataset.prefix" in problems[0].hint
    assert save(prefix="d:/export/").splits()["train"][0].views[0].name == "images/1.png"
    source = save(images=str(tmp_path / "images"), prefix="D:\\Export\\images")
    assert source.splits()["val"][0].views[0].name == "4.png"


def test_missing_files_and_folders_are_named(listed, tmp_path):
    _, save = listed
    save()
    with problem("no-such-file", place="exam.csv") as problems:
        save(file=str(tmp_path / "exam.csv"), get_from="our clinic").splits()
    assert "our clinic" in problems[0].hint and "exams.csv" in problems[0].hint
    with problem("no-such-file", place="scans"):
        save(images=str(tmp_path / "scans")).splits()


def test_reports_need_no_images(listed, tmp_path):
    _, save = listed
    source = save()
    shutil.rmtree(tmp_path / "images")
    assert load_reports(source)["val"] == ["Report 4; clear."]
    with problem("no-such-file", place="line 2"):
        load_exams(source)


def test_cache_key_follows_table_and_images(listed, tmp_path):
    rows, save = listed
    before = save().cache_key
    assert save().cache_key == before
    picture(tmp_path / "images" / "1.png")
    changed = save().cache_key
    windowed = save(window=(0, 4095)).cache_key
    rows[0][4] = "Other."
    assert len({before, changed, windowed, save().cache_key}) == 4


@pytest.mark.parametrize(
    "override, code, place",
    [
        ("file=exams.json", "wrong-format", "data.dataset.file"),
        ("columns.imgae=x", "unknown-key", "data.dataset.columns.imgae"),
        ("separator=semicolom", "unknown-name", "data.dataset.separator"),
    ],
)
def test_a_wrong_key_is_refused_before_the_table_is_read(override, code, place):
    good = ["data.dataset={name: table, file: a.csv, columns: {image: a, report: b, split: c}}"]
    load_recipe("smoke", good)
    with problem(code, place=place):
        load_recipe("smoke", [*good, f"data.dataset.{override}"])
