"""The manifest data set, image files as views, and the check of data."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from harness import problem
from PIL import Image

from framework.build import load_exams, load_reports
from framework.data.check import check
from framework.data.image_file import inside
from framework.recipe import load_recipe
from plugins.dataset.manifest import Manifest

RANDOM = np.random.default_rng(0)


def picture(path, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 255, size[::-1], dtype=np.uint8)).save(path)


def entries(split, first, count=2):
    return [
        {
            "uid": first + n,
            "finding": f"Report {first + n}.",
            "image_path": [f"{first + n}_1.png", f"{first + n}_2.png"],
        }
        for n in range(count)
    ]


@pytest.fixture
def listed(tmp_path):
    """A manifest that is fine, to be spoilt, and the function that saves it and gives the data set."""
    found = {"train": entries("train", 1), "val": entries("val", 11), "test": entries("test", 21)}
    for exams in found.values():
        for exam in exams:
            for name in exam["image_path"]:
                picture(tmp_path / "images" / name)

    def save(encoding="utf-8", **settings):
        (tmp_path / "exams.json").write_text(json.dumps(found, ensure_ascii=False), encoding=encoding)
        return Manifest(file=str(tmp_path / "exams.json"), images=str(tmp_path / "images"), **settings)

    return found, save


def test_the_published_format_with_a_byte_order_mark_is_read(listed):
    found, save = listed
    found["train"][0] |= {"finding": "腺体回声均匀。", "labels": 4, "split": "train"}
    splits = save("utf-8-sig").splits()
    exam = splits["train"][0]
    assert (exam.id, exam.patient, exam.report, exam.attributes) == ("1", "1", "腺体回声均匀。", {"labels": 4})
    assert [view.name for view in exam.views] == ["1_1.png", "1_2.png"]
    assert exam.views[0].load().shape == (10, 12)
    assert {split: len(exams) for split, exams in splits.items()} == {"train": 2, "val": 2, "test": 2}


def test_the_keys_of_r2gen_and_a_single_view_are_read(listed):
    found, save = listed
    found["val"][0] = {"id": "CXR7", "report": "Clear.", "image_path": "11_1.png", "patient": "p"}
    exam = save().splits()["val"][0]
    assert (exam.id, exam.patient, exam.report, len(exam.views)) == ("CXR7", "p", "Clear.", 1)


def test_the_report_may_have_another_key(listed):
    found, save = listed
    for exams in found.values():
        for exam in exams:
            exam["text"] = "Other words."
    assert save(report_key="text").splits()["test"][1].report == "Other words."


def test_all_invalid_exams_are_named_at_once(listed):
    found, save = listed
    found["train"][0]["image_path"] = ["gone.png"]
    found["train"][1]["finding"] = "  "
    found["val"][0]["image_path"] = []
    found["test"][0] = {"finding": "No id.", "image_path": "x.png"}
    found["test"][1]["split"] = "train"
    with problem("no-such-file", place="exam 1") as problems:
        save().splits()
    assert [(each.code, each.place.rpartition(", ")[2]) for each in problems] == [
        ("no-such-file", "exam 1"),
        ("empty-report", "exam 2"),
        ("wrong-type", "exam 11"),
        ("missing-key", "exam number 1 of test"),
        ("conflicting-settings", "exam 22"),
    ]


def test_a_long_list_of_problems_is_cut_and_counted(listed):
    found, save = listed
    found["train"] = [{"uid": 100 + n, "finding": "A.", "image_path": "no.png"} for n in range(50)]
    with problem("no-such-file", place="exam 100") as problems:
        save().splits()
    assert len(problems) == 21 and problems[-1].found == "30 more problems"


@pytest.mark.parametrize(
    "path", ["../exams.json", "/etc/passwd", "a/../../exams.json", "..\\exams.json", "C:\\x.png", ""]
)
def test_paths_may_not_leave_the_folder_of_images(listed, path):
    found, save = listed
    found["train"][0]["image_path"] = [path]
    with problem("no-such-file", place="exam 1"):
        save().splits()


def test_links_may_not_leave_the_folder_of_images(listed, tmp_path):
    found, save = listed
    picture(tmp_path / "secret.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    found["train"][0]["image_path"] = "link.png"
    with problem("no-such-file", place="exam 1") as problems:
        save().splits()
    assert "symbolic link" in problems[0].found
    assert inside(tmp_path, "images/1_1.png") == (tmp_path / "images" / "1_1.png").resolve()


def test_ids_and_patients_in_two_splits_are_refused(listed):
    found, save = listed
    found["test"][0]["uid"] = 1
    found["test"][1]["patient"] = "p"
    found["train"][1]["patient"] = "p"
    with problem("duplicate-id", place="exam 1") as problems:
        save().splits()
    assert ("split-leak", "exam 22") in [(each.code, each.place.rpartition(", ")[2]) for each in problems]


@pytest.mark.parametrize(
    "text, code, place",
    [
        ('{"train": [\n  {"uid": 1,, }', "wrong-format", "exams.json:2:13"),
        ("1", "wrong-type", "exams.json"),
        ("[1]", "missing-key", "exams.json"),
        ('[{"uid": 1}]', "missing-key", "exams.json"),
        ('{"train": [1], "vall": [1], "test": [1]}', "missing-key", "exams.json"),
        ('{"train": [1], "val": [1], "valid": [1], "test": [1]}', "conflicting-settings", "exams.json"),
        ('{"train": [1], "val": 3, "test": [1]}', "wrong-type", "exams.json"),
        ('{"exams": [1]}', "missing-key", "exams.json"),
        ('{"train": [1], "train": [2], "val": [1], "test": [1]}', "duplicate-key", "exams.json"),
        ('{"train": [3], "val": [[]], "test": [null]}', "wrong-type", "exam number 1 of val"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, code, place):
    (tmp_path / "exams.json").write_text(text)
    with problem(code, place=place):
        Manifest(file=str(tmp_path / "exams.json"), images=str(tmp_path)).splits()


@pytest.mark.parametrize("val", [None, []])
def test_a_split_may_be_missing_where_it_is_not_needed(listed, val):
    found, save = listed
    del found["val"]
    found |= {} if val is None else {"val": val}
    source = save()
    assert list(load_exams(source, ("test",))) == ["test"]
    for load in (load_exams, load_reports):
        with problem("empty-split", place="split val") as problems:
            load(source)
        assert len(problems) == 1


def test_a_missing_file_and_another_encoding_are_refused(tmp_path):
    with problem("no-such-file", place="none.json") as problems:
        Manifest(file=str(tmp_path / "none.json"), images=str(tmp_path), get_from="our clinic").splits()
    assert "our clinic" in problems[0].hint and "recipes/breast" in problems[0].hint
    (tmp_path / "exams.json").write_bytes('{"train": "腺"}'.encode("gbk"))
    with problem("unreadable-file", place="exams.json"):
        Manifest(file=str(tmp_path / "exams.json"), images=str(tmp_path)).splits()


def test_cache_key_follows_the_images(listed, tmp_path):
    _, save = listed
    before = save().cache_key
    assert save().cache_key == before
    os.utime(tmp_path / "images" / "21_2.png", (1, 1))
    assert save().cache_key != before


def test_views_are_picklable(listed):
    _, save = listed
    view = save().splits()["train"][0].views[0]
    assert np.array_equal(pickle.loads(pickle.dumps(view)).load(), view.load())


@pytest.mark.parametrize("lines", [False, True], ids=["a list", "json lines"])
def test_a_flat_list_with_other_keys_is_read(tmp_path, lines):
    splits = {"train": "train", "validate": "val", "test": "test"}
    exams = [
        {"study": f"s{n}", "subject": f"p{n}", "text": f"Report {n}.", "files": f"{n}.png", "part": part}
        for n, part in enumerate(splits)
    ]
    for exam in exams:
        picture(tmp_path / "images" / exam["files"])
    file = tmp_path / ("exams.jsonl" if lines else "exams.json")
    file.write_text("\n".join(map(json.dumps, exams)) + "\n" if lines else json.dumps(exams))
    keys = {
        "id_key": "study",
        "report_key": "text",
        "images_key": "files",
        "patient_key": "subject",
        "split_key": "part",
    }
    found = Manifest(file=str(file), images=str(tmp_path / "images"), **keys).splits()
    assert {split: [(e.id, e.patient, e.report, e.views[0].name) for e in exams] for split, exams in found.items()} == {
        split: [(f"s{n}", f"p{n}", f"Report {n}.", f"{n}.png")] for n, split in enumerate(splits.values())
    }


def test_other_splits_are_counted_and_their_exams_not_read(listed, tmp_path):
    found, save = listed
    found["external"] = [{"uid": 1}, {}]
    found["license"] = "CC0"
    splits = save().splits()
    assert {name: len(exams) for name, exams in splits.items()} == {"train": 2, "val": 2, "test": 2, "external": 2}
    lines = [{**entry, "split": split} for split in ("train", "val", "test") for entry in found[split]]
    (tmp_path / "flat.json").write_text(json.dumps([*lines, {**lines[0], "uid": 99, "split": "Train"}]))
    flat = Manifest(file=str(tmp_path / "flat.json"), images=str(tmp_path / "images"))
    assert len(flat.splits()["Train"]) == 1 and flat.cache_key


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_line_separators_in_a_report_do_not_end_a_line(listed, tmp_path, sign):
    found, _ = listed
    lines = [{**entry, "split": split, "finding": f"One.{sign}Two."} for split in found for entry in found[split]]
    file = tmp_path / "exams.jsonl"
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    exams = Manifest(file=str(file), images=str(tmp_path / "images")).splits()
    assert {exam.report for split in exams.values() for exam in split} == {f"One.{sign}Two."}


def test_a_mistake_in_json_lines_names_its_line(tmp_path):
    (tmp_path / "exams.jsonl").write_text('{"uid": 1, "split": "train"}\n\n{"uid": 2,}\n')
    with problem("wrong-format", place="exams.jsonl:3:11"):
        Manifest(file=str(tmp_path / "exams.jsonl"), images=str(tmp_path)).splits()


def test_a_missing_report_key_names_a_likely_key(listed):
    found, save = listed
    found["train"][0]["findigs"] = found["train"][0].pop("finding")
    with problem("missing-key", place="exam 1") as problems:
        save().splits()
    assert "Did you mean 'findigs'?" in str(problems[0])


@pytest.mark.parametrize("absent", [float("nan"), "", " ", None], ids=["NaN", "empty", "space", "null"])
def test_a_missing_value_of_pandas_is_no_value_and_17_0_is_17(listed, absent):
    found, save = listed
    for number, exam in enumerate(exam for exams in found.values() for exam in exams):
        exam |= {"uid": float(exam["uid"]), "patient": absent, "labels": absent, "split": absent}
        exam |= {"report": absent} if number % 2 else {"finding": absent, "report": exam["finding"]}
    found["train"][0]["patient"] = 7.0
    exams = [exam for exams in save().splits().values() for exam in exams]
    assert [exam.id for exam in exams] == ["1", "2", "11", "12", "21", "22"]
    assert [exam.patient for exam in exams] == ["7", "2", "11", "12", "21", "22"]
    assert all(exam.report and not exam.attributes for exam in exams)


def test_values_that_no_id_or_patient_can_have_are_named(listed):
    found, save = listed
    found["train"][0]["uid"] = float("nan")
    found["train"][1]["uid"] = 2.5
    found["val"][0]["patient"] = 1.5
    found["val"][1]["finding"] = None
    with problem("missing-key") as problems:
        save().splits()
    assert [each.code for each in problems] == ["missing-key", "wrong-type", "wrong-type", "empty-report"]


def test_a_table_where_json_is_expected_is_refused_without_reading_it():
    with problem("wrong-format", place="data.dataset.file"):
        load_recipe("smoke", ["data.dataset=manifest", "data.dataset.file=exams.CSV", "data.dataset.images=."])


def test_half_a_character_in_a_report_names_the_exam(listed, tmp_path):
    found, save = listed
    save()
    found["val"][1]["finding"] = "A \ud83d B"
    found["train"][0]["uid"] = "1\udcff"
    (tmp_path / "exams.json").write_text(json.dumps(found))
    source = Manifest(file=str(tmp_path / "exams.json"), images=str(tmp_path / "images"))
    for errors in (check(source).errors, _problems_of(lambda: load_exams(source))):
        assert [(each.code, each.place) for each in errors] == [
            ("wrong-format", "exam 1\\udcff"),
            ("wrong-format", "exam 1\\udcff"),
            ("wrong-format", "exam 12"),
        ]
        assert all(str(each).encode() for each in errors), "can be printed"


def _problems_of(call):
    with problem("wrong-format") as problems:
        call()
    return problems


def test_a_name_in_gbk_bytes_names_the_exam(listed, tmp_path):
    found, _ = listed
    name = os.fsdecode("你.png".encode("gbk"))
    picture(tmp_path / "images" / name)
    found["test"][0]["image_path"] = [name]
    (tmp_path / "exams.json").write_text(json.dumps(found))
    source = Manifest(file=str(tmp_path / "exams.json"), images=str(tmp_path / "images"))
    assert [(each.code, each.place) for each in check(source).errors] == [("wrong-format", "exam 21")]
    with problem("wrong-format", place="exam 21"):
        load_exams(source)


def test_a_list_of_problems_has_broken_rows_and_broken_images(listed, tmp_path):
    found, save = listed
    found["train"][0]["finding"] = ""
    (tmp_path / "images" / "1_2.png").write_bytes(b"no image")
    (tmp_path / "images" / "21_1.png").write_bytes(b"no image")
    found["val"] += [{"uid": 100 + n, "finding": "A.", "image_path": "no.png"} for n in range(30)]
    errors = [(each.code, each.place.rpartition(", ")[2]) for each in check(save()).errors]
    assert ("empty-report", "exam 1") in errors and len(errors) == 33
    assert errors[-2:] == [("broken-image", "exam 1"), ("broken-image", "exam 21")]


def test_reports_need_no_images(listed, tmp_path):
    _, save = listed
    source = save()
    shutil.rmtree(tmp_path / "images")
    assert load_reports(source)["val"] == ["Report 11.", "Report 12."]
    with problem("no-such-file", place="images"):
        source.splits()
